//! ARP for IPv4 over Ethernet (RFC 826), and what RFC 5227 says of probes.

use std::net::Ipv4Addr;

use super::{ETHERNET_LEN, be16};
use crate::ids::MacAddr;

/// Bytes of an ARP message for IPv4 over Ethernet.
pub const ARP_LEN: usize = 28;
const REQUEST: u16 = 1;
const REPLY: u16 = 2;

/// What an ARP message does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Who has the target address?
    Request,
    /// The sender has the sender address.
    Reply,
}

/// An ARP message for IPv4 over Ethernet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// Request or reply.
    pub operation: Operation,
    /// Sender hardware address.
    pub sender_mac: MacAddr,
    /// Sender protocol address; unspecified in a probe.
    pub sender: Ipv4Addr,
    /// Target hardware address.
    pub target_mac: MacAddr,
    /// Target protocol address.
    pub target: Ipv4Addr,
}

impl Arp {
    /// Parses what follows the Ethernet header; `None` when it is anything else than ARP for IPv4 over Ethernet.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < ARP_LEN || bytes[..6] != [0, 1, 8, 0, 6, 4] {
            return None;
        }
        let mac = |at: usize| MacAddr(bytes[at..at + 6].try_into().expect("six bytes"));
        let ip =
            |at: usize| Ipv4Addr::from_octets(bytes[at..at + 4].try_into().expect("four bytes"));
        let operation = match be16(bytes, 6) {
            REQUEST => Operation::Request,
            REPLY => Operation::Reply,
            _ => return None,
        };
        Some(Self {
            operation,
            sender_mac: mac(8),
            sender: ip(14),
            target_mac: mac(18),
            target: ip(24),
        })
    }

    /// Writes an Ethernet frame from the sender to the target.
    pub fn emit(&self, frame: &mut Vec<u8>) {
        frame.clear();
        frame.reserve(ETHERNET_LEN + ARP_LEN);
        frame.extend_from_slice(&self.target_mac.0);
        frame.extend_from_slice(&self.sender_mac.0);
        frame.extend_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4]);
        let operation = match self.operation {
            Operation::Request => REQUEST,
            Operation::Reply => REPLY,
        };
        frame.extend_from_slice(&operation.to_be_bytes());
        frame.extend_from_slice(&self.sender_mac.0);
        frame.extend_from_slice(&self.sender.octets());
        frame.extend_from_slice(&self.target_mac.0);
        frame.extend_from_slice(&self.target.octets());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_reads_what_it_writes() {
        let arp = Arp {
            operation: Operation::Reply,
            sender_mac: MacAddr([2, 0, 0, 0, 0, 1]),
            sender: Ipv4Addr::new(10, 88, 0, 1),
            target_mac: MacAddr([2, 0, 0, 0, 0, 2]),
            target: Ipv4Addr::new(10, 88, 0, 2),
        };
        let mut frame = Vec::new();
        arp.emit(&mut frame);
        assert_eq!(frame.len(), 42);
        assert_eq!(Arp::parse(&frame[ETHERNET_LEN..]), Some(arp));
        assert_eq!(Arp::parse(&frame[ETHERNET_LEN..41]), None);
        frame[ETHERNET_LEN + 7] = 9;
        assert_eq!(Arp::parse(&frame[ETHERNET_LEN..]), None);
    }
}
