//! DHCPv6 at the gateway (RFC 8415): states to each port the one IPv6 address that control has fixed for it, and
//! to who has addresses already its resolver and its domain (stateless).
//!
//! As with DHCPv4 there is no pool and no lease to remember. An association that asks for a second address is
//! told that there is none; a client's other server is not one of this network. A declined address stays: it
//! goes with the IPv4 address, and by DHCPv4 control can be made to choose another.

use std::net::Ipv6Addr;

use crate::budget::TokenBucket;
use crate::command::{NetworkSpec, PortSpec};
use crate::counters::DropReason;
use crate::time::Instant;
use crate::wire::dhcp::search_list;
use crate::wire::dhcp6::{Dhcp6Message, MessageType, Reply, Status, option};

/// Seconds that an address is good. The binding outlives it.
const LEASE: u32 = 3600;
/// Messages of one port in a second, sustained; twice as many at once.
const RATE: u32 = 10;
/// When who has only asked for the rest asks again (RFC 8415 21.23 has the least, 600 s).
const REFRESH: u32 = 86_400;

/// What one port's DHCPv6 server remembers.
#[derive(Debug)]
pub struct Dhcp6Server {
    rate: TokenBucket,
}

impl Default for Dhcp6Server {
    fn default() -> Self {
        Self { rate: TokenBucket::new(RATE, 2 * RATE) }
    }
}

impl Dhcp6Server {
    /// Takes a message that the guest of `port` sent to the server's port. Answers with the message to send back,
    /// if there is one.
    pub fn handle_message(
        &mut self,
        now: Instant,
        port: &PortSpec,
        network: &NetworkSpec,
        bytes: &[u8],
    ) -> Result<Option<Vec<u8>>, DropReason> {
        if !self.rate.take(now) {
            return Err(DropReason::DhcpBudget);
        }
        let message = Dhcp6Message::parse(bytes).ok_or(DropReason::DhcpMalformed)?;
        let (Some(address), Some(resolver)) = (port.address6, network.gateway6()) else {
            return Err(DropReason::Ipv6Off);
        };
        let binding = Binding { address, resolver, network };
        binding.check(&message)?;
        Ok(binding.answer(&message))
    }
}

/// What control has fixed for a port.
struct Binding<'a> {
    address: Ipv6Addr,
    resolver: Ipv6Addr,
    network: &'a NetworkSpec,
}

impl Binding<'_> {
    /// RFC 8415 16: which messages name the client, and which the server.
    fn check(&self, message: &Dhcp6Message<'_>) -> Result<(), DropReason> {
        let own_server = self.server_id();
        let is_ours = message.server_id.map(|id| id == own_server);
        let (names_client, names_server) = match message.kind {
            MessageType::Solicit | MessageType::Confirm | MessageType::Rebind => {
                (message.client_id.is_some(), message.server_id.is_none())
            }
            MessageType::Request
            | MessageType::Renew
            | MessageType::Release
            | MessageType::Decline => (message.client_id.is_some(), is_ours.is_some()),
            MessageType::InformationRequest => (true, message.associations.is_empty()),
            // What only servers and relays say.
            _ => return Err(DropReason::DhcpGuard),
        };
        if !names_client || !names_server {
            return Err(DropReason::DhcpMalformed);
        }
        // For another server, of which there is none on this network.
        if is_ours == Some(false) { Err(DropReason::DhcpGuard) } else { Ok(()) }
    }

    fn answer(&self, message: &Dhcp6Message<'_>) -> Option<Vec<u8>> {
        let kind = match message.kind {
            MessageType::Solicit if !message.rapid_commit => MessageType::Advertise,
            _ => MessageType::Reply,
        };
        let mut reply = Reply::new(message, kind, &self.server_id());
        match message.kind {
            MessageType::Solicit | MessageType::Request => {
                if message.rapid_commit && message.kind == MessageType::Solicit {
                    reply.add(option::RAPID_COMMIT, &[]);
                }
                self.assign(message, &mut reply);
            }
            MessageType::Renew | MessageType::Rebind => self.renew(message, &mut reply),
            MessageType::Confirm => {
                let mut claimed = message.associations.iter().flat_map(|ia| &ia.addresses);
                // RFC 8415 18.3.3: who names no address is not answered.
                let first = claimed.next()?;
                let on_link = |address: &Ipv6Addr| {
                    self.network.prefix6.is_some_and(|prefix| prefix.contains(*address))
                };
                let right = on_link(first) && claimed.all(on_link);
                reply.add_status(if right { Status::Success } else { Status::NotOnLink });
            }
            MessageType::Release | MessageType::Decline => reply.add_status(Status::Success),
            _ => {}
        }
        if !matches!(message.kind, MessageType::Release | MessageType::Decline) {
            self.add_configuration(message, &mut reply);
        }
        Some(reply.finish())
    }

    /// The first association gets the address, the others none.
    fn assign(&self, message: &Dhcp6Message<'_>, reply: &mut Reply) {
        for (nth, association) in message.associations.iter().enumerate() {
            if nth == 0 {
                reply.add_address(association.id, &[(self.address, LEASE)]);
            } else {
                reply.add_refusal(association.id, Status::NoAddress);
            }
        }
    }

    /// RFC 8415 18.3.4: what is right is good for longer, what is not is good no more.
    fn renew(&self, message: &Dhcp6Message<'_>, reply: &mut Reply) {
        for (nth, association) in message.associations.iter().enumerate() {
            if nth > 0 {
                reply.add_refusal(association.id, Status::NoBinding);
                continue;
            }
            let wrong = association.addresses.iter().filter(|address| **address != self.address);
            let addresses: Vec<(Ipv6Addr, u32)> = std::iter::once((self.address, LEASE))
                .chain(wrong.map(|address| (*address, 0)))
                .collect();
            reply.add_address(association.id, &addresses);
        }
    }

    fn add_configuration(&self, message: &Dhcp6Message<'_>, reply: &mut Reply) {
        if message.wants(option::NAME_SERVERS) {
            reply.add(option::NAME_SERVERS, &self.resolver.octets());
        }
        if message.wants(option::SEARCH_LIST)
            && let Some(domain) = search_list(&format!("{}.internal", self.network.name))
        {
            reply.add(option::SEARCH_LIST, &domain);
        }
        if message.kind == MessageType::InformationRequest && message.wants(option::REFRESH_TIME) {
            reply.add(option::REFRESH_TIME, &REFRESH.to_be_bytes());
        }
    }

    /// A DUID of the gateway's Ethernet address (RFC 8415 11.4).
    fn server_id(&self) -> [u8; 10] {
        let mut duid = [0, 3, 0, 1, 0, 0, 0, 0, 0, 0];
        duid[4..].copy_from_slice(&self.network.gateway_mac.0);
        duid
    }
}
