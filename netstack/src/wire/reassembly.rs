//! Reassembly of fragments (RFC 791, 815; RFC 8200 4.5), within bounds.
//!
//! A datagram with fragments that overlap is dropped whole: RFC 5722 asks that of IPv6, and no honest
//! sender overlaps in IPv4 either. An exact duplicate of a fragment is ignored, since networks duplicate.
//! Bounds: [`MAX_DATAGRAMS`] and [`MAX_BYTES`] at once, [`LIFETIME`] each; the oldest goes first. What is kept of a first
//! fragment to be quoted, [`MAX_QUOTE`] at most, comes on top.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use super::headers::{Ipv4, Ipv6};
use super::icmp6::MAX_QUOTE;
use super::ipv6::Fragment;
use crate::counters::DropReason;
use crate::time::Instant;

/// Datagrams under reassembly at once.
pub const MAX_DATAGRAMS: usize = 64;
/// Bytes that wait, all datagrams together.
pub const MAX_BYTES: usize = 1 << 20;
/// How long a datagram waits for its rest (RFC 1122 3.3.2 says 60 to 120 s; Linux 30 s).
pub const LIFETIME: Duration = Duration::from_secs(30);
/// The largest payload an IPv4 datagram can have.
const MAX_PAYLOAD: usize = 65_515;

#[derive(Clone, Copy, PartialEq, Eq)]
struct Key {
    source: IpAddr,
    destination: IpAddr,
    /// Zero in IPv6, where it is no part of the key.
    protocol: u8,
    identification: u32,
}

struct Datagram {
    key: Key,
    started: Instant,
    /// Payload so far; holes hold zeroes.
    payload: Vec<u8>,
    /// Sorted, disjoint ranges that are present.
    present: Vec<(usize, usize)>,
    /// Known once the last fragment is here.
    total: Option<usize>,
    /// What its sender is told of if the rest does not come: the start of its first fragment, once that is here.
    quote: Option<Box<[u8]>>,
}

/// The datagrams of one port that are not whole yet.
#[derive(Default)]
pub struct Reassembly {
    /// Oldest first.
    waiting: VecDeque<Datagram>,
    bytes: usize,
}

/// What one fragment did.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its datagram is whole: this is the payload.
    Whole(Vec<u8>),
    /// More is missing; the reasons are those of older datagrams that made room, one entry each.
    Waiting(Vec<DropReason>),
    /// The fragment, and all that waited with it, was dropped.
    Dropped(DropReason),
}

impl Reassembly {
    /// Takes the fragment whose header is `ipv4` and whose data is `data`. `packet` is all of it, where it is a first
    /// fragment about which an error may be sent.
    pub fn handle_fragment(
        &mut self,
        now: Instant,
        ipv4: &Ipv4,
        data: &[u8],
        packet: Option<&[u8]>,
    ) -> Outcome {
        let key = Key {
            source: ipv4.source.into(),
            destination: ipv4.destination.into(),
            protocol: ipv4.protocol,
            identification: ipv4.identification.into(),
        };
        self.handle(now, key, (ipv4.fragment_offset, ipv4.more_fragments), data, packet)
    }

    /// Takes the fragment whose header is `ipv6` and whose data, behind `fragment`, is `data`; `packet` as in IPv4.
    pub fn handle_fragment6(
        &mut self,
        now: Instant,
        ipv6: &Ipv6,
        fragment: &Fragment,
        data: &[u8],
        packet: Option<&[u8]>,
    ) -> Outcome {
        let key = Key {
            source: ipv6.source.into(),
            destination: ipv6.destination.into(),
            protocol: 0,
            identification: fragment.identification,
        };
        self.handle(now, key, (fragment.offset, fragment.more), data, packet)
    }

    fn handle(
        &mut self,
        now: Instant,
        key: Key,
        (start, more): (usize, bool),
        data: &[u8],
        packet: Option<&[u8]>,
    ) -> Outcome {
        let end = start + data.len();
        // Only the last fragment may have a length that is not a multiple of eight, and none may be empty.
        if data.is_empty() || (more && !data.len().is_multiple_of(8)) {
            return self.forget(key, DropReason::IpHeader);
        }
        if end > MAX_PAYLOAD {
            return self.forget(key, DropReason::FragmentOverlap);
        }
        let mut made_room = Vec::new();
        let at = match self.waiting.iter().position(|datagram| datagram.key == key) {
            Some(at) => at,
            None => {
                if self.waiting.len() == MAX_DATAGRAMS {
                    self.remove(0);
                    made_room.push(DropReason::FragmentBudget);
                }
                self.waiting.push_back(Datagram {
                    key,
                    started: now,
                    payload: Vec::new(),
                    present: Vec::new(),
                    total: None,
                    quote: None,
                });
                self.waiting.len() - 1
            }
        };
        let datagram = &mut self.waiting[at];
        if datagram.present.contains(&(start, end)) {
            return Outcome::Dropped(DropReason::Duplicate);
        }
        let overlaps = datagram.present.iter().any(|&(from, to)| start < to && from < end)
            || datagram.total.is_some_and(|total| end > total || !more)
            || (!more && datagram.present.iter().any(|&(_, to)| to > end));
        if overlaps {
            return self.forget(key, DropReason::FragmentOverlap);
        }
        if !more {
            datagram.total = Some(end);
        }
        if let Some(packet) = packet {
            datagram.quote = Some(packet[..packet.len().min(MAX_QUOTE)].into());
        }
        if datagram.payload.len() < end {
            self.bytes += end - datagram.payload.len();
            datagram.payload.resize(end, 0);
        }
        datagram.payload[start..end].copy_from_slice(data);
        let place = datagram.present.partition_point(|&(from, _)| from < start);
        datagram.present.insert(place, (start, end));
        if datagram.is_whole() {
            return Outcome::Whole(self.remove(at).payload);
        }
        while self.bytes > MAX_BYTES {
            self.remove(0);
            made_room.push(DropReason::FragmentBudget);
        }
        Outcome::Waiting(made_room)
    }

    /// Drops what waited too long; answers what of each datagram its sender is told of, if it is to be told.
    pub fn handle_timeout(&mut self, now: Instant) -> Vec<Option<Box<[u8]>>> {
        let mut dropped = Vec::new();
        while self.waiting.front().is_some_and(|oldest| oldest.started + LIFETIME <= now) {
            dropped.push(self.remove(0).quote);
        }
        dropped
    }

    /// When [`Reassembly::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.waiting.front().map(|oldest| oldest.started + LIFETIME)
    }

    /// Datagrams that wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    fn forget(&mut self, key: Key, reason: DropReason) -> Outcome {
        if let Some(at) = self.waiting.iter().position(|datagram| datagram.key == key) {
            self.remove(at);
        }
        Outcome::Dropped(reason)
    }

    fn remove(&mut self, at: usize) -> Datagram {
        let datagram = self.waiting.remove(at).expect("the index is of a waiting datagram");
        self.bytes -= datagram.payload.len();
        datagram
    }
}

impl Datagram {
    fn is_whole(&self) -> bool {
        let mut reached = 0;
        for &(from, to) in &self.present {
            if from != reached {
                return false;
            }
            reached = to;
        }
        self.total == Some(reached)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::wire::headers::Transport;

    fn fragment(identification: u16, offset: usize, more: bool, len: usize) -> (Ipv4, Vec<u8>) {
        let ipv4 = Ipv4 {
            source: Ipv4Addr::new(10, 88, 0, 2),
            destination: Ipv4Addr::new(192, 0, 2, 1),
            protocol: 17,
            ttl: 64,
            header_len: 20,
            total_len: 20 + len,
            identification,
            dont_fragment: false,
            more_fragments: more,
            fragment_offset: offset,
            transport: Transport::Fragment(None),
        };
        (ipv4, (0..len).map(|i| ((offset + i) % 251) as u8).collect())
    }

    fn feed(table: &mut Reassembly, fragment: (Ipv4, Vec<u8>)) -> Outcome {
        table.handle_fragment(Instant::START, &fragment.0, &fragment.1, None)
    }

    #[test]
    fn fragments_in_any_order_become_the_datagram() {
        let parts = [(0, true, 1480), (1480, true, 1480), (2960, false, 100)];
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
            let mut table = Reassembly::default();
            let mut last = None;
            for index in order {
                let (offset, more, len) = parts[index];
                last = Some(feed(&mut table, fragment(1, offset, more, len)));
            }
            let whole: Vec<u8> = (0..3060).map(|i| (i % 251) as u8).collect();
            assert_eq!(last, Some(Outcome::Whole(whole)));
            assert!(table.is_empty());
            assert_eq!(table.bytes, 0);
        }
    }

    #[test]
    fn an_overlap_drops_the_datagram_whole() {
        let overlaps = [(8, true, 16), (0, true, 8), (16, true, 16), (0, false, 8)];
        for (offset, more, len) in overlaps {
            let mut table = Reassembly::default();
            feed(&mut table, fragment(1, 0, true, 24));
            let outcome = feed(&mut table, fragment(1, offset, more, len));
            assert_eq!(outcome, Outcome::Dropped(DropReason::FragmentOverlap), "{offset}+{len}");
            assert!(table.is_empty());
        }
    }

    #[test]
    fn a_fragment_beyond_the_largest_datagram_is_refused() {
        let mut table = Reassembly::default();
        let outcome = feed(&mut table, fragment(1, 65_512, false, 8));
        assert_eq!(outcome, Outcome::Dropped(DropReason::FragmentOverlap));
    }

    #[test]
    fn an_exact_duplicate_is_ignored() {
        let mut table = Reassembly::default();
        feed(&mut table, fragment(1, 0, true, 8));
        let outcome = feed(&mut table, fragment(1, 0, true, 8));
        assert_eq!(outcome, Outcome::Dropped(DropReason::Duplicate));
        assert!(matches!(feed(&mut table, fragment(1, 8, false, 8)), Outcome::Whole(_)));
    }

    #[test]
    fn a_flood_of_incomplete_datagrams_stays_within_bounds() {
        let mut table = Reassembly::default();
        let mut made_room = 0;
        for identification in 0..10_000 {
            if let Outcome::Waiting(reasons) =
                feed(&mut table, fragment(identification, 32_768, true, 1480))
            {
                made_room += reasons.len();
            }
            assert!(table.len() <= MAX_DATAGRAMS && table.bytes <= MAX_BYTES);
        }
        assert_eq!(made_room, 10_000 - table.len());
        let left = table.len();
        assert_eq!(table.handle_timeout(Instant::START + LIFETIME), vec![None; left]);
        assert_eq!(table.len(), 0);
        assert_eq!(table.bytes, 0);
    }
}
