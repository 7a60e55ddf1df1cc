//! DHCPv4 at the gateway: states to each port the one binding that control has fixed for it.
//!
//! There is no pool and no lease to remember, so nothing can be exhausted and nothing depends on control
//! being there. The one thing that a guest can change is its own address, by DECLINE: control chooses
//! another, and how often is bounded. Relays are not served: a port is one client.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::Duration;

use crate::budget::TokenBucket;
use crate::command::{NetworkSpec, PortSpec};
use crate::counters::DropReason;
use crate::time::Instant;
use crate::wire::dhcp::{BOOTREQUEST, DhcpMessage, MessageType, Reply, option, search_list};

/// Seconds that a lease lasts. The binding outlives it; a client that renews notices a changed one.
const LEASE: u32 = 3600;
/// Messages of one port in a second, sustained; twice as many at once.
const RATE: u32 = 10;
/// How often a port may decline its address in [`DECLINE_PERIOD`].
const MAX_DECLINES: usize = 8;
const DECLINE_PERIOD: Duration = Duration::from_secs(3600);

/// What one port's DHCP server remembers.
#[derive(Debug)]
pub struct DhcpServer {
    rate: TokenBucket,
    /// When addresses were declined lately.
    declines: VecDeque<Instant>,
    /// A declined address that control has not been told of.
    declined: Option<Ipv4Addr>,
}

/// What is to be done about a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Send it.
    Answer(Answer),
    /// It was understood and is not answered.
    Accepted,
    /// It is dropped.
    Dropped(DropReason),
}

/// An answer, from the server's port of the gateway to the client's port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Destination address of its packet.
    pub to: Ipv4Addr,
    /// The UDP payload.
    pub message: Vec<u8>,
}

impl Default for DhcpServer {
    fn default() -> Self {
        Self { rate: TokenBucket::new(RATE, 2 * RATE), declines: VecDeque::new(), declined: None }
    }
}

impl DhcpServer {
    /// Takes a message that the guest of `port` sent to the server's port.
    pub fn handle_message(
        &mut self,
        now: Instant,
        port: &PortSpec,
        network: &NetworkSpec,
        bytes: &[u8],
    ) -> Outcome {
        if !self.rate.take(now) {
            return Outcome::Dropped(DropReason::DhcpBudget);
        }
        let Some(message) = DhcpMessage::parse(bytes) else {
            return Outcome::Dropped(DropReason::DhcpMalformed);
        };
        let own_client = message.op == BOOTREQUEST
            && message.hardware == port.mac
            && message.relay.is_unspecified();
        if !own_client {
            return Outcome::Dropped(DropReason::DhcpGuard);
        }
        let binding = Binding { port, network };
        match message.kind {
            MessageType::Discover => binding.lease(&message, MessageType::Offer),
            MessageType::Request => binding.handle_request(&message),
            MessageType::Inform if message.client_address == port.address => {
                binding.inform(&message)
            }
            MessageType::Release if message.client_address == port.address => Outcome::Accepted,
            MessageType::Decline
                if message.server == Some(network.gateway)
                    && message.requested == Some(port.address) =>
            {
                self.handle_decline(now, port.address)
            }
            // About somebody else's address, or what only servers say.
            _ => Outcome::Dropped(DropReason::DhcpGuard),
        }
    }

    fn handle_decline(&mut self, now: Instant, address: Ipv4Addr) -> Outcome {
        while self.declines.front().is_some_and(|at| *at + DECLINE_PERIOD <= now) {
            self.declines.pop_front();
        }
        if self.declines.len() >= MAX_DECLINES {
            return Outcome::Dropped(DropReason::DhcpBudget);
        }
        self.declines.push_back(now);
        self.declined = Some(address);
        Outcome::Accepted
    }

    /// A declined address that control should replace.
    pub fn poll_declined(&mut self) -> Option<Ipv4Addr> {
        self.declined.take()
    }
}

/// What control has fixed for a port.
struct Binding<'a> {
    port: &'a PortSpec,
    network: &'a NetworkSpec,
}

impl Binding<'_> {
    /// RFC 2131 4.3.2: which of its four states a client is in shows in what it fills in.
    fn handle_request(&self, message: &DhcpMessage<'_>) -> Outcome {
        let asked = match (message.server, message.requested) {
            // Selecting another server, of which there is none on this network.
            (Some(server), _) if server != self.network.gateway => {
                return Outcome::Dropped(DropReason::DhcpGuard);
            }
            // Selecting, or init-reboot.
            (_, Some(requested)) if message.client_address.is_unspecified() => requested,
            // Renewing, or rebinding.
            (None, _) if !message.client_address.is_unspecified() => message.client_address,
            _ => return Outcome::Dropped(DropReason::DhcpMalformed),
        };
        if asked == self.port.address {
            self.lease(message, MessageType::Ack)
        } else {
            self.refuse(message)
        }
    }

    fn lease(&self, message: &DhcpMessage<'_>, kind: MessageType) -> Outcome {
        let mut reply = Reply::new(message, kind, self.network.gateway, self.port.address);
        reply.add(option::LEASE_TIME, &LEASE.to_be_bytes());
        self.add_configuration(message, &mut reply);
        if message.wanted.has(option::RENEWAL_TIME) {
            reply.add(option::RENEWAL_TIME, &(LEASE / 2).to_be_bytes());
        }
        if message.wanted.has(option::REBINDING_TIME) {
            reply.add(option::REBINDING_TIME, &(LEASE / 8 * 7).to_be_bytes());
        }
        self.answer(message, reply)
    }

    /// RFC 2131 4.3.5: neither an address nor times.
    fn inform(&self, message: &DhcpMessage<'_>) -> Outcome {
        let gateway = self.network.gateway;
        let mut reply = Reply::new(message, MessageType::Ack, gateway, Ipv4Addr::UNSPECIFIED);
        self.add_configuration(message, &mut reply);
        self.answer(message, reply)
    }

    /// A NAK is always broadcast: the client's idea of its address is wrong (RFC 2131 4.1).
    fn refuse(&self, message: &DhcpMessage<'_>) -> Outcome {
        let gateway = self.network.gateway;
        let reply = Reply::new(message, MessageType::Nak, gateway, Ipv4Addr::UNSPECIFIED);
        Outcome::Answer(Answer { to: Ipv4Addr::BROADCAST, message: reply.finish() })
    }

    /// What makes an interface work is always said, the rest when asked for.
    fn add_configuration(&self, message: &DhcpMessage<'_>, reply: &mut Reply) {
        let network = self.network;
        let gateway = network.gateway.octets();
        let is_router = self.port.default_route && !network.internal;
        reply.add(option::SUBNET_MASK, &network.subnet.netmask().octets());
        if is_router {
            reply.add(option::ROUTER, &gateway);
        }
        reply.add(option::NAME_SERVER, &gateway);
        let mut when_wanted = |code, value: &[u8]| {
            if message.wanted.has(code) {
                reply.add(code, value);
            }
        };
        if is_router {
            // A client that takes option 121 ignores option 3 (RFC 3442): the default route is in both.
            when_wanted(option::CLASSLESS_ROUTES, &[&[0][..], &gateway].concat());
        }
        let domain = format!("{}.internal", network.name);
        when_wanted(option::MTU, &network.mtu.to_be_bytes());
        when_wanted(option::DOMAIN_NAME, domain.as_bytes());
        when_wanted(option::SEARCH_LIST, &search_list(&domain).unwrap_or_default());
        when_wanted(option::HOST_NAME, self.port.name.as_bytes());
        when_wanted(option::BROADCAST, &network.subnet.broadcast().octets());
    }

    /// RFC 2131 4.1, where a client without an address can be reached by unicast, since the Ethernet
    /// address of the frame is ours to choose.
    fn answer(&self, message: &DhcpMessage<'_>, reply: Reply) -> Outcome {
        let to = if message.client_address == self.port.address {
            message.client_address
        } else if message.broadcast {
            Ipv4Addr::BROADCAST
        } else {
            self.port.address
        };
        Outcome::Answer(Answer { to, message: reply.finish() })
    }
}
