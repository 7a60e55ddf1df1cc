//! Which of a port's queues a frame goes to: frames of one flow all go to the same one, and so stay in order. A queue is a
//! ring of a virtual machine's, or one of a tap's.
//!
//! What cannot be told apart goes together: fragments by their addresses, what is neither IPv4 nor IPv6 to the
//! first queue. Deliberately absent: a table of where the guest has sent each flow from, as virtio 1.2, 5.1.6.5
//! recommends, since a flow that changes its queue may be overtaken by itself.

use crate::frame::vnet_header::VNET_LEN;

const ETHERTYPE: usize = VNET_LEN + 12;
const IP: usize = VNET_LEN + 14;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// An odd number without a pattern (2⁶⁴ by the golden ratio).
const MIXER: u64 = 0x9e37_79b9_7f4a_7c15;

/// The queue, of `queues`, for a frame behind its virtio-net header, or for the beginning of one with all its headers.
#[inline(always)]
pub fn queue_of(frame: &[u8], queues: usize) -> usize {
    if queues < 2 { 0 } else { by_flow(frame, queues) }
}

#[inline(never)]
fn by_flow(frame: &[u8], queues: usize) -> usize {
    let hash = match frame.get(ETHERTYPE..IP) {
        Some([0x08, 0x00]) => ipv4(&frame[IP..]),
        Some([0x86, 0xdd]) => ipv6(&frame[IP..]),
        _ => None,
    };
    // The upper half is mixed best.
    let upper = usize::try_from(hash.unwrap_or(0) >> 48).expect("sixteen bits");
    (upper * queues) >> 16
}

fn ipv4(packet: &[u8]) -> Option<u64> {
    let header_len = usize::from(packet.first()? & 15) * 4;
    let (fragment, protocol) = (packet.get(6..8)?, *packet.get(9)?);
    let is_whole = fragment[0] & 0x3f == 0 && fragment[1] == 0;
    let ports = if is_whole { ports(protocol, packet.get(header_len..)?) } else { 0 };
    Some(mix(packet.get(12..20)?, ports))
}

/// Extension headers are not looked behind; frames with them go by their addresses.
fn ipv6(packet: &[u8]) -> Option<u64> {
    let ports = ports(*packet.get(6)?, packet.get(40..)?);
    Some(mix(&packet[8..40], ports))
}

fn ports(protocol: u8, transport: &[u8]) -> u64 {
    match (protocol, transport.first_chunk()) {
        (TCP | UDP, Some(ports)) => {
            u64::from(u32::from_ne_bytes(*ports)) | u64::from(protocol) << 32
        }
        _ => 0,
    }
}

fn mix(addresses: &[u8], ports: u64) -> u64 {
    let words =
        addresses.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().expect("eight")));
    words
        .chain([ports])
        .fold(0, |hash, word| {
            let mixed = (hash ^ word).wrapping_mul(MIXER);
            mixed ^ mixed >> 32
        })
        .wrapping_mul(MIXER)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::ids::MacAddr;
    use crate::testing::frames::{ethernet, udp};

    fn datagram(from: &str, to: &str) -> Vec<u8> {
        let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
        let ethertype = if from.is_ipv6() { 0x86dd } else { 0x0800 };
        ethernet(MacAddr([2; 6]), MacAddr([4; 6]), ethertype, &udp(from, to, b"x"))
    }

    #[test]
    fn flows_spread_over_all_queues_and_each_keeps_to_one() {
        for (from, to) in [("10.88.0.2", "10.88.0.3"), ("[fd00::2]", "[fd00::3]")] {
            for queues in [1, 2, 3, 4] {
                let mut count = vec![0; queues];
                for port in 1000..1400 {
                    let frame = datagram(&format!("{from}:{port}"), &format!("{to}:53"));
                    let queue = queue_of(&frame, queues);
                    assert_eq!(queue_of(&frame, queues), queue);
                    count[queue] += 1;
                }
                let even = 400 / queues;
                assert!(count.iter().all(|count| *count > even / 2), "{from}: {count:?}");
            }
        }
    }

    #[test]
    fn fragments_of_a_datagram_go_together() {
        let queues = |offset: [u8; 2]| {
            (1000..1100).map(move |port| {
                let mut frame = datagram(&format!("10.88.0.2:{port}"), "10.88.0.3:53");
                frame[IP + 6..IP + 8].copy_from_slice(&offset);
                queue_of(&frame, 4)
            })
        };
        // The first, one in the middle, the last, whatever stands where the ports would be.
        let first = queues([0x20, 0]).next();
        for offset in [[0x20, 0], [0x20, 185], [0, 185], [0x1f, 0xff]] {
            assert!(queues(offset).all(|queue| Some(queue) == first), "{offset:?}");
        }
        let whole: std::collections::BTreeSet<_> = queues([0x40, 0]).collect();
        assert_eq!(whole.len(), 4, "what must not be fragmented is no fragment");
    }

    #[test]
    fn what_has_no_flow_goes_to_the_first_queue() {
        let arp = ethernet(MacAddr([2; 6]), MacAddr([255; 6]), 0x0806, &[0; 28]);
        assert_eq!(queue_of(&arp, 4), 0);
        let whole = datagram("10.88.0.2:1", "10.88.0.3:2");
        for len in 0..whole.len() {
            assert!(queue_of(&whole[..len], 4) < 4);
        }
    }
}
