//! IPv6 (RFC 8200): the header that we write, and the walk over extension headers to what they carry.
//!
//! The walk is bounded: [`MAX_EXTENSIONS`] headers, each option once. A chain that goes on, a routing header
//! that still wants to go somewhere (RFC 5095) and a header that runs over the packet's end are refused. So
//! nobody can hide what a packet carries from the guard (RFC 7113).

use std::net::Ipv6Addr;

use super::{be16, be32};

/// Bytes of the fixed header.
pub const IPV6_LEN: usize = 40;
/// Bytes of a fragment header.
pub const FRAGMENT_LEN: usize = 8;
/// The smallest MTU of a link (RFC 8200 5): errors are cut to it, and no path is narrower.
pub const MIN_MTU: u16 = 1280;
/// Extension headers in one packet; RFC 8504 5.3 lets a host limit them, and Linux's limit is eight.
pub const MAX_EXTENSIONS: usize = 8;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
/// The next header of a fragment.
pub const FRAGMENT: u8 = 44;
const NO_NEXT_HEADER: u8 = 59;
const DESTINATION_OPTIONS: u8 = 60;
const AUTHENTICATION: u8 = 51;
const MOBILITY: u8 = 135;
const HOST_IDENTITY: u8 = 139;
const SHIM6: u8 = 140;

/// A header to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv6Header {
    /// Source.
    pub source: Ipv6Addr,
    /// Destination.
    pub destination: Ipv6Addr,
    /// What follows.
    pub next_header: u8,
    /// Hops that are left.
    pub hop_limit: u8,
    /// Differentiated services and ECN.
    pub traffic_class: u8,
    /// Bytes after the header.
    pub payload_len: usize,
}

impl Ipv6Header {
    /// Writes the header. A payload that does not fit in 65,535 bytes is our own mistake.
    pub fn emit(&self) -> [u8; IPV6_LEN] {
        let payload = u16::try_from(self.payload_len).expect("packets are below 64 KiB");
        let mut header = [0; IPV6_LEN];
        header[0] = 0x60 | self.traffic_class >> 4;
        header[1] = self.traffic_class << 4;
        header[4..6].copy_from_slice(&payload.to_be_bytes());
        header[6] = self.next_header;
        header[7] = self.hop_limit;
        header[8..24].copy_from_slice(&self.source.octets());
        header[24..40].copy_from_slice(&self.destination.octets());
        header
    }
}

/// A fragment header (RFC 8200 4.5) together with where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Where this fragment's data belongs, in bytes.
    pub offset: usize,
    /// More fragments follow.
    pub more: bool,
    /// Identification.
    pub identification: u32,
    /// Where the header lies in its packet.
    pub at: usize,
    /// Where the byte lies that names it: what is left when it is taken out must be named there.
    pub named_at: usize,
    /// What the fragmented part begins with.
    pub next_header: u8,
}

impl Fragment {
    /// Whether the packet is whole in spite of its fragment header (RFC 6946).
    pub fn is_atomic(&self) -> bool {
        self.offset == 0 && !self.more
    }
}

/// Writes a fragment header; `offset` is in bytes, a multiple of eight.
pub fn emit_fragment(
    next_header: u8,
    offset: usize,
    more: bool,
    identification: u32,
) -> [u8; FRAGMENT_LEN] {
    let offset = u16::try_from(offset).expect("packets are below 64 KiB") & !7;
    let mut header = [0; FRAGMENT_LEN];
    header[0] = next_header;
    header[2..4].copy_from_slice(&(offset | u16::from(more)).to_be_bytes());
    header[4..8].copy_from_slice(&identification.to_be_bytes());
    header
}

/// What a packet's chain of headers comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    /// What the packet carries; for a fragment that is not the first, what the fragmented part begins with.
    pub protocol: u8,
    /// Bytes in front of what it carries, the fixed header included.
    pub len: usize,
    /// The fragment header, if there is one. Of a fragment behind the first nothing is walked beyond it.
    pub fragment: Option<Fragment>,
    /// The first option that nobody here knows and that must not be skipped.
    pub unknown: Option<UnknownOption>,
}

/// An option whose type says that who does not know it must not go on (RFC 8200 4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownOption {
    /// Where its type lies in the packet.
    pub at: usize,
    /// Who is told.
    pub action: UnknownAction,
}

/// What the two highest bits of an option's type ask of who does not know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownAction {
    /// Discard the packet.
    Discard,
    /// Discard it and say so.
    Tell,
    /// Discard it and say so, unless it was sent to a group.
    TellUnlessMulticast,
}

/// Why a chain cannot be walked to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainError {
    /// A header runs over the end of the packet, or contradicts itself.
    Malformed,
    /// Too many headers, a routing header that is not spent, or one that hides what it carries.
    Refused,
}

/// Walks the headers of `packet`, which is exactly one packet, from its fixed header on.
pub fn walk(packet: &[u8]) -> Result<Chain, ChainError> {
    let mut chain = Chain {
        protocol: *packet.get(6).ok_or(ChainError::Malformed)?,
        len: IPV6_LEN,
        fragment: None,
        unknown: None,
    };
    if packet.len() < IPV6_LEN {
        return Err(ChainError::Malformed);
    }
    let mut named_at = 6;
    for count in 0.. {
        if !is_extension(chain.protocol) {
            return Ok(chain);
        }
        if count == MAX_EXTENSIONS {
            return Err(ChainError::Refused);
        }
        let rest = packet.get(chain.len..).filter(|rest| rest.len() >= 8);
        let rest = rest.ok_or(ChainError::Malformed)?;
        let mut len = (usize::from(rest[1]) + 1) * 8;
        match chain.protocol {
            // Only right behind the fixed header (RFC 8200 4.1).
            HOP_BY_HOP if count > 0 => return Err(ChainError::Malformed),
            HOP_BY_HOP | DESTINATION_OPTIONS => {
                let options = rest.get(2..len).ok_or(ChainError::Malformed)?;
                let unknown = read_options(options, chain.len + 2)?;
                chain.unknown = chain.unknown.or(unknown);
            }
            ROUTING if rest[3] != 0 => return Err(ChainError::Refused),
            ROUTING => {}
            FRAGMENT => {
                if chain.fragment.is_some() {
                    return Err(ChainError::Refused);
                }
                len = FRAGMENT_LEN;
                let fragment = read_fragment(rest, chain.len, named_at);
                chain.fragment = Some(fragment);
                if fragment.offset > 0 {
                    return Ok(Chain {
                        protocol: fragment.next_header,
                        len: chain.len + FRAGMENT_LEN,
                        ..chain
                    });
                }
            }
            // RFC 4302 counts in words of four bytes.
            AUTHENTICATION => len = (usize::from(rest[1]) + 2) * 4,
            _ => {}
        }
        if rest.len() < len {
            return Err(ChainError::Malformed);
        }
        named_at = chain.len;
        chain.protocol = rest[0];
        chain.len += len;
    }
    unreachable!("the loop ends at its bound")
}

fn is_extension(next_header: u8) -> bool {
    matches!(
        next_header,
        HOP_BY_HOP
            | ROUTING
            | FRAGMENT
            | DESTINATION_OPTIONS
            | AUTHENTICATION
            | MOBILITY
            | HOST_IDENTITY
            | SHIM6
    )
}

/// Whether a packet says that it carries nothing.
pub fn is_empty(protocol: u8) -> bool {
    protocol == NO_NEXT_HEADER
}

fn read_fragment(header: &[u8], at: usize, named_at: usize) -> Fragment {
    let word = be16(header, 2);
    Fragment {
        offset: usize::from(word & !7),
        more: word & 1 != 0,
        identification: be32(header, 4),
        at,
        named_at,
        next_header: header[0],
    }
}

/// Reads options that begin at byte `at` of their packet; answers the first that must not be skipped.
fn read_options(options: &[u8], at: usize) -> Result<Option<UnknownOption>, ChainError> {
    /// Filling, router alert (RFC 2711), jumbo payload (RFC 2675, which no packet of ours needs).
    const PAD1: u8 = 0;
    const ROUTER_ALERT: u8 = 5;
    let mut rest = options;
    let mut unknown = None;
    while let [kind, tail @ ..] = rest {
        if *kind == PAD1 {
            rest = tail;
            continue;
        }
        let len = usize::from(*tail.first().ok_or(ChainError::Malformed)?) + 2;
        if rest.len() < len {
            return Err(ChainError::Malformed);
        }
        let action = match kind >> 6 {
            _ if *kind == ROUTER_ALERT => None,
            0 => None,
            1 => Some(UnknownAction::Discard),
            2 => Some(UnknownAction::Tell),
            _ => Some(UnknownAction::TellUnlessMulticast),
        };
        let here = at + options.len() - rest.len();
        unknown = unknown.or(action.map(|action| UnknownOption { at: here, action }));
        rest = &rest[len..];
    }
    Ok(unknown)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::chance::Chance;

    fn packet(next_header: u8, rest: &[u8]) -> Vec<u8> {
        let header = Ipv6Header {
            source: Ipv6Addr::LOCALHOST,
            destination: Ipv6Addr::LOCALHOST,
            next_header,
            hop_limit: 64,
            traffic_class: 0xc0,
            payload_len: rest.len(),
        };
        [&header.emit()[..], rest].concat()
    }

    #[test]
    fn a_header_stands_as_rfc_8200_draws_it() {
        let bytes = packet(17, &[1, 2, 3]);
        assert_eq!(bytes[..8], [0x6c, 0, 0, 0, 0, 3, 17, 64]);
        assert_eq!(
            walk(&bytes),
            Ok(Chain { protocol: 17, len: 40, fragment: None, unknown: None })
        );
    }

    #[test]
    fn extension_headers_are_walked_to_what_they_carry() {
        let hop_by_hop = [DESTINATION_OPTIONS, 0, 5, 2, 0, 0, 1, 0];
        let options = [FRAGMENT, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let fragment = emit_fragment(6, 0, true, 7);
        let bytes = packet(HOP_BY_HOP, &[&hop_by_hop[..], &options, &fragment, &[9; 8]].concat());
        let chain = walk(&bytes).unwrap();
        assert_eq!((chain.protocol, chain.len), (6, 40 + 8 + 16 + 8));
        let fragment = chain.fragment.unwrap();
        assert_eq!((fragment.at, fragment.named_at), (64, 48));
        assert_eq!((fragment.offset, fragment.more, fragment.identification), (0, true, 7));
    }

    #[test]
    fn a_later_fragment_is_not_walked_into() {
        let fragment = emit_fragment(DESTINATION_OPTIONS, 1448, false, 7);
        let chain = walk(&packet(FRAGMENT, &[&fragment[..], &[0xff; 20]].concat())).unwrap();
        assert_eq!((chain.protocol, chain.len), (DESTINATION_OPTIONS, 48));
        assert_eq!(chain.fragment.unwrap().offset, 1448);
    }

    #[test]
    fn what_leads_astray_is_refused() {
        let refused = |next, rest: &[u8]| walk(&packet(next, rest)).unwrap_err();
        let spent = [17, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(walk(&packet(ROUTING, &spent)).unwrap().protocol, 17);
        assert_eq!(refused(ROUTING, &[17, 0, 0, 1, 0, 0, 0, 0]), ChainError::Refused);
        let long = [DESTINATION_OPTIONS, 0, 1, 4, 0, 0, 0, 0].repeat(9);
        assert_eq!(refused(DESTINATION_OPTIONS, &long), ChainError::Refused);
        let fragments = [&emit_fragment(FRAGMENT, 0, true, 1)[..], &[17; 8]].concat();
        assert_eq!(refused(FRAGMENT, &fragments), ChainError::Refused);
        assert_eq!(refused(HOP_BY_HOP, &[17, 1, 0, 0, 0, 0, 0, 0]), ChainError::Malformed);
        assert_eq!(refused(HOP_BY_HOP, &[17, 0, 1, 9, 0, 0, 0, 0]), ChainError::Malformed);
        let twice = [HOP_BY_HOP, 0, 1, 4, 0, 0, 0, 0].repeat(2);
        assert_eq!(refused(HOP_BY_HOP, &twice), ChainError::Malformed);
    }

    #[test]
    fn an_option_that_must_not_be_skipped_is_told_with_its_place() {
        for (kind, action) in [
            (0x3e, None),
            (0x7e, Some(UnknownAction::Discard)),
            (0xbe, Some(UnknownAction::Tell)),
            (0xfe, Some(UnknownAction::TellUnlessMulticast)),
        ] {
            let chain = walk(&packet(HOP_BY_HOP, &[17, 0, 0, kind, 2, 0, 0, 0])).unwrap();
            assert_eq!(chain.unknown, action.map(|action| UnknownOption { at: 43, action }));
        }
    }

    #[test]
    fn no_prefix_and_no_mutation_makes_the_walk_panic() {
        let hop_by_hop = [DESTINATION_OPTIONS, 0, 5, 2, 0, 0, 1, 0];
        let options = [AUTHENTICATION, 0, 0xc2, 4, 0, 0, 0, 0];
        let authentication = [FRAGMENT, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let fragment = emit_fragment(58, 0, true, 7);
        let rest =
            [&hop_by_hop[..], &options, &authentication, &fragment, &[128, 0, 0, 0]].concat();
        let whole = packet(HOP_BY_HOP, &rest);
        assert_eq!(walk(&whole).unwrap().len, 40 + 8 + 8 + 12 + 8);
        for len in 0..whole.len() {
            let _ = walk(&whole[..len]);
        }
        let mut chance = Chance::seeded();
        for _ in 0..200_000 {
            let bytes = chance.mutate(&whole);
            if let Ok(chain) = walk(&bytes) {
                assert!(chain.len <= bytes.len(), "{bytes:?}");
            }
        }
    }
}
