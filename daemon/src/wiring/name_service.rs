//! Joins the datapath's seam for names with the crate that knows DNS.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use lichen_dns::{Catalog, Resolver, Via};
use lichen_netstack::command::Transport;
use lichen_netstack::gateway::names::{Action, NameService, Reply, Ticket};
use lichen_netstack::host::Route;
use lichen_netstack::host::sys::RouteQuery;
use lichen_netstack::switch::directory::{NamedPrefixes, NetworkView};
use lichen_netstack::time::Instant;

/// The name service of a datapath.
pub struct Names {
    resolver: Resolver<Ticket>,
    networks: Vec<NamedPrefixes>,
    routes: RouteQuery,
}

impl Names {
    /// A service that knows no resolver yet; `seed` must be unpredictable.
    pub fn new(seed: u64) -> std::io::Result<Self> {
        let routes = RouteQuery::new()?;
        Ok(Self { resolver: Resolver::new(seed), networks: Vec::new(), routes })
    }
}

/// A network as the name service sees it.
struct View<'a> {
    network: &'a NetworkView,
    networks: &'a [NamedPrefixes],
}

impl Catalog for View<'_> {
    fn network(&self) -> &str {
        &self.network.spec.name
    }

    fn gateway(&self) -> Ipv4Addr {
        self.network.spec.gateway
    }

    fn gateway6(&self) -> Option<Ipv6Addr> {
        self.network.spec.gateway6()
    }

    fn addresses_of(&self, label: &str) -> Vec<Ipv4Addr> {
        self.network.addresses_of(label).to_vec()
    }

    fn addresses6_of(&self, label: &str) -> Vec<Ipv6Addr> {
        self.network.addresses6_of(label).to_vec()
    }

    fn name_of(&self, address: IpAddr) -> Option<String> {
        let member = match address {
            IpAddr::V4(address) => self.network.member(address),
            IpAddr::V6(address) => self.network.member6(address),
        };
        member.map(|member| member.name.clone())
    }

    fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.network.spec.subnet.contains(address),
            IpAddr::V6(address) => {
                self.network.spec.prefix6.is_some_and(|prefix| prefix.contains(address))
            }
        }
    }

    fn is_ours(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|network| network.contain(address))
    }

    fn is_network(&self, label: &str) -> bool {
        self.networks.iter().any(|network| network.name.eq_ignore_ascii_case(label))
    }

    fn is_internal(&self) -> bool {
        self.network.spec.internal
    }

    fn has_nat64(&self) -> bool {
        self.network.spec.nat64
    }
}

impl NameService for Names {
    fn handle_query(
        &mut self,
        now: Instant,
        ticket: Ticket,
        network: &NetworkView,
        transport: Transport,
        message: &[u8],
    ) {
        let view = View { network, networks: &self.networks };
        let via = match transport {
            Transport::Udp => Via::Udp,
            Transport::Tcp => Via::Tcp,
        };
        self.resolver.handle_query(since_start(now), ticket, &view, via, message);
    }

    fn handle_reply(&mut self, now: Instant, exchange: u32, reply: Reply<'_>) {
        let reply = match reply {
            Reply::Message(message) => lichen_dns::Reply::Message(message),
            Reply::Failed => lichen_dns::Reply::Failed,
        };
        let (networks, routes) = (&self.networks, &mut self.routes);
        let mut is_own = |ip: IpAddr| {
            networks.iter().any(|network| network.contain(ip)) || routes.ask(ip) == Route::Local
        };
        self.resolver.handle_reply(since_start(now), exchange, reply, &mut is_own);
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.resolver.handle_timeout(since_start(now));
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.resolver.poll_timeout().map(|at| Instant::START + at)
    }

    fn poll_action(&mut self) -> Option<Action> {
        Some(match self.resolver.poll_action()? {
            lichen_dns::Action::Answer { asker: ticket, message } => {
                Action::Answer { ticket, message }
            }
            lichen_dns::Action::Ask { exchange, resolver, via, message } => {
                let transport = match via {
                    Via::Udp => Transport::Udp,
                    Via::Tcp => Transport::Tcp,
                };
                Action::Ask { exchange, resolver, transport, message }
            }
            lichen_dns::Action::Forget { exchange } => Action::Forget { exchange },
        })
    }

    fn set_resolvers(&mut self, resolvers: &[SocketAddr]) {
        self.resolver.set_resolvers(resolvers);
    }

    fn set_networks(&mut self, networks: Vec<NamedPrefixes>) {
        self.networks = networks;
    }
}

fn since_start(now: Instant) -> Duration {
    now.since(Instant::START)
}
