//! Joins the datapath's seam for names with the crate that knows DNS.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use lichen_dns::{Catalog, Resolver, Via};
use lichen_netstack::command::Transport;
use lichen_netstack::gateway::names::{Action, NameService, Reply, Ticket};
use lichen_netstack::host::Route;
use lichen_netstack::host::sys::RouteQuery;
use lichen_netstack::ids::Ipv4Prefix;
use lichen_netstack::switch::directory::NetworkView;
use lichen_netstack::time::Instant;

/// The name service of a datapath.
pub struct Names {
    resolver: Resolver<Ticket>,
    networks: Vec<(String, Ipv4Prefix)>,
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
    networks: &'a [(String, Ipv4Prefix)],
}

impl Catalog for View<'_> {
    fn network(&self) -> &str {
        &self.network.spec.name
    }

    fn gateway(&self) -> Ipv4Addr {
        self.network.spec.gateway
    }

    fn addresses_of(&self, label: &str) -> Vec<Ipv4Addr> {
        self.network.addresses_of(label).to_vec()
    }

    fn name_of(&self, address: Ipv4Addr) -> Option<String> {
        self.network.member(address).map(|member| member.name.clone())
    }

    fn contains(&self, address: Ipv4Addr) -> bool {
        self.network.spec.subnet.contains(address)
    }

    fn is_ours(&self, address: Ipv4Addr) -> bool {
        self.networks.iter().any(|(_, subnet)| subnet.contains(address))
    }

    fn is_network(&self, label: &str) -> bool {
        self.networks.iter().any(|(name, _)| name.eq_ignore_ascii_case(label))
    }

    fn is_internal(&self) -> bool {
        self.network.spec.internal
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
        let mut is_own = |ip: Ipv4Addr| {
            networks.iter().any(|(_, subnet)| subnet.contains(ip)) || routes.ask(ip) == Route::Local
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

    fn set_networks(&mut self, networks: Vec<(String, Ipv4Prefix)>) {
        self.networks = networks;
    }
}

fn since_start(now: Instant) -> Duration {
    now.since(Instant::START)
}
