//! Neighbour discovery (RFC 4861): the messages that a guest may send, parsed, and those that a gateway
//! sends, written, with the options of RFC 4861, 8106 and 8781.
//!
//! What is parsed is one ICMPv6 message that lies in one packet (RFC 6980 forbids fragments) and whose
//! checksum was verified. Options are read once, in order; one of length zero or that runs over the end makes
//! the message nothing (RFC 4861 4.6), an unknown one is skipped.

use std::net::Ipv6Addr;
use std::time::Duration;

use super::icmp::ICMP_LEN;
use crate::ids::{Ipv6Prefix, MacAddr};

/// Router solicitation.
pub const ROUTER_SOLICITATION: u8 = 133;
/// Router advertisement.
pub const ROUTER_ADVERTISEMENT: u8 = 134;
/// Neighbour solicitation.
pub const NEIGHBOUR_SOLICITATION: u8 = 135;
/// Neighbour advertisement.
pub const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// Redirect.
pub const REDIRECT: u8 = 137;
/// Every gateway's own address on its link, which is what a default route goes to.
pub const GATEWAY_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// All nodes of a link.
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// All routers of a link.
pub const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
/// What a message of neighbour discovery is sent with, so that none comes from beyond the link.
pub const HOP_LIMIT: u8 = 255;

const SOURCE_LINK_LAYER: u8 = 1;
const TARGET_LINK_LAYER: u8 = 2;
const PREFIX_INFORMATION: u8 = 3;
const MTU: u8 = 5;
const NONCE: u8 = 14;
const RECURSIVE_DNS: u8 = 25;
const SEARCH_LIST: u8 = 31;
const PREF64: u8 = 38;
/// Options in one message.
const MAX_OPTIONS: usize = 16;

/// A message of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ndp {
    /// Who is the router?
    RouterSolicitation {
        /// The sender's Ethernet address, if it says it.
        source: Option<MacAddr>,
    },
    /// Who has an address?
    NeighbourSolicitation {
        /// The address.
        target: Ipv6Addr,
        /// The sender's Ethernet address, if it says it.
        source: Option<MacAddr>,
        /// What tells the probe of one's own from another's (RFC 7527).
        nonce: Option<[u8; 6]>,
    },
    /// I have an address.
    NeighbourAdvertisement {
        /// The address.
        target: Ipv6Addr,
        /// The Ethernet address that it claims for it, if it does.
        mac: Option<MacAddr>,
    },
    /// What only a router says: advertisement and redirect.
    FromRouter,
}

impl Ndp {
    /// Whether a type is one of neighbour discovery.
    pub fn is_kind(kind: u8) -> bool {
        matches!(kind, ROUTER_SOLICITATION..=REDIRECT)
    }

    /// Parses a message, from its type on. `None` for what is malformed or another's.
    pub fn parse(message: &[u8]) -> Option<Self> {
        if message.len() < ICMP_LEN || message[1] != 0 {
            return None;
        }
        let target = || message.get(8..24)?.first_chunk().map(|t| Ipv6Addr::from_octets(*t));
        match message[0] {
            ROUTER_SOLICITATION => {
                let options = Options::read(&message[8..])?;
                Some(Self::RouterSolicitation { source: options.source })
            }
            NEIGHBOUR_SOLICITATION => {
                let target = target().filter(|target| !target.is_multicast())?;
                let Options { source, nonce, .. } = Options::read(&message[24..])?;
                Some(Self::NeighbourSolicitation { target, source, nonce })
            }
            NEIGHBOUR_ADVERTISEMENT => {
                let target = target().filter(|target| !target.is_multicast())?;
                let mac = Options::read(&message[24..])?.target;
                Some(Self::NeighbourAdvertisement { target, mac })
            }
            ROUTER_ADVERTISEMENT | REDIRECT => Some(Self::FromRouter),
            _ => None,
        }
    }
}

#[derive(Default)]
struct Options {
    source: Option<MacAddr>,
    target: Option<MacAddr>,
    nonce: Option<[u8; 6]>,
}

impl Options {
    fn read(bytes: &[u8]) -> Option<Self> {
        let mut options = Self::default();
        let mut rest = bytes;
        for _ in 0..MAX_OPTIONS {
            let [kind, words, ..] = rest else {
                return rest.is_empty().then_some(options);
            };
            let len = usize::from(*words) * 8;
            if len == 0 || len > rest.len() {
                return None;
            }
            let first = rest[2..].first_chunk::<6>().filter(|_| len == 8);
            match (*kind, first) {
                (SOURCE_LINK_LAYER, Some(mac)) => options.source = Some(MacAddr(*mac)),
                (TARGET_LINK_LAYER, Some(mac)) => options.target = Some(MacAddr(*mac)),
                (NONCE, Some(nonce)) => options.nonce = Some(*nonce),
                (SOURCE_LINK_LAYER | TARGET_LINK_LAYER, None) => return None,
                _ => {}
            }
            rest = &rest[len..];
        }
        rest.is_empty().then_some(options)
    }
}

/// The group that who has `address` listens to (RFC 4291 2.7.1).
pub fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from(b) << 8 | u16::from(c))
}

/// A neighbour advertisement to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advertisement {
    /// The address.
    pub target: Ipv6Addr,
    /// Whose it is.
    pub mac: MacAddr,
    /// Whether that is a router.
    pub role: Role,
    /// Why it is sent.
    pub occasion: Occasion,
}

/// What has an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A host.
    Host,
    /// A router.
    Router,
}

/// Why a neighbour advertisement is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// Somebody with an address has asked.
    Asked,
    /// Somebody without an address has tried it (duplicate address detection).
    Tried,
}

impl Advertisement {
    /// Writes the message; its checksum is to be filled.
    pub fn emit(&self) -> Vec<u8> {
        let router = if self.role == Role::Router { 0x80 } else { 0 };
        let solicited = if self.occasion == Occasion::Asked { 0x40 } else { 0 };
        let mut message =
            vec![NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, router | solicited | 0x20, 0, 0, 0];
        message.extend_from_slice(&self.target.octets());
        message.extend_from_slice(&[TARGET_LINK_LAYER, 1]);
        message.extend_from_slice(&self.mac.0);
        message
    }
}

/// A neighbour solicitation from a router, with its Ethernet address; its checksum is to be filled.
pub fn solicitation(target: Ipv6Addr, source: MacAddr) -> Vec<u8> {
    let mut message = vec![NEIGHBOUR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
    message.extend_from_slice(&target.octets());
    message.extend_from_slice(&[SOURCE_LINK_LAYER, 1]);
    message.extend_from_slice(&source.0);
    message
}

/// A router advertisement to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouterAdvertisement<'a> {
    /// The router's Ethernet address.
    pub mac: MacAddr,
    /// How long it is a default router; zero when it is none.
    pub router_lifetime: Duration,
    /// The network's prefix, on link and for addresses of one's own making.
    pub prefix: Ipv6Prefix,
    /// How long what is said is good.
    pub lifetime: Duration,
    /// The link's MTU.
    pub mtu: u16,
    /// The resolver.
    pub resolver: Ipv6Addr,
    /// The domain to search, such as `bridge.internal`.
    pub search: &'a str,
    /// The /96 under which IPv4 is reached, where it is; good for as long as the router is one.
    pub nat64: Option<Ipv6Prefix>,
}

impl RouterAdvertisement<'_> {
    /// Managed (M, there are addresses by DHCPv6) and other configuration (O).
    const FLAGS: u8 = 0xc0;
    /// On link (L), and for addresses of one's own making (A).
    const PREFIX_FLAGS: u8 = 0xc0;

    /// Writes the message; its checksum is to be filled.
    pub fn emit(&self) -> Vec<u8> {
        let lifetime = |lifetime: Duration| u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX);
        let router = u16::try_from(self.router_lifetime.as_secs()).unwrap_or(u16::MAX);
        let valid = lifetime(self.lifetime);
        let mut message = vec![ROUTER_ADVERTISEMENT, 0, 0, 0, 64, Self::FLAGS];
        message.extend_from_slice(&router.to_be_bytes());
        // Reachable time and retransmission timer are left to the guest.
        message.extend_from_slice(&[0; 8]);
        message.extend_from_slice(&[SOURCE_LINK_LAYER, 1]);
        message.extend_from_slice(&self.mac.0);
        message.extend_from_slice(&[MTU, 1, 0, 0]);
        message.extend_from_slice(&u32::from(self.mtu).to_be_bytes());
        message.extend_from_slice(&[PREFIX_INFORMATION, 4, self.prefix.len(), Self::PREFIX_FLAGS]);
        message.extend_from_slice(&valid.to_be_bytes());
        message.extend_from_slice(&valid.to_be_bytes());
        message.extend_from_slice(&[0; 4]);
        message.extend_from_slice(&self.prefix.address().octets());
        message.extend_from_slice(&[RECURSIVE_DNS, 3, 0, 0]);
        message.extend_from_slice(&valid.to_be_bytes());
        message.extend_from_slice(&self.resolver.octets());
        self.emit_search(valid, &mut message);
        self.emit_nat64(router, &mut message);
        message
    }

    /// RFC 8781 4: thirteen bits of lifetime in units of eight seconds, rounded up, and three that say the prefix's length:
    /// none for 96.
    fn emit_nat64(&self, seconds: u16, message: &mut Vec<u8>) {
        let Some(prefix) = self.nat64 else { return };
        let scaled = seconds.div_ceil(8).min(0x1fff);
        message.extend_from_slice(&[PREF64, 2]);
        message.extend_from_slice(&(scaled << 3).to_be_bytes());
        message.extend_from_slice(&prefix.address().octets()[..12]);
    }

    /// RFC 8106 5.2: the domain as in a message of DNS, filled to a multiple of eight.
    fn emit_search(&self, valid: u32, message: &mut Vec<u8>) {
        let Some(name) = super::dhcp::search_list(self.search) else { return };
        let words = (8 + name.len()).div_ceil(8);
        let Ok(words) = u8::try_from(words) else { return };
        message.extend_from_slice(&[SEARCH_LIST, words, 0, 0]);
        message.extend_from_slice(&valid.to_be_bytes());
        message.extend_from_slice(&name);
        message.resize(message.len() + usize::from(words) * 8 - 8 - name.len(), 0);
    }
}

/// Whether a message of neighbour discovery came as RFC 4861 asks: from this link, whole, and of a type's
/// least length.
pub fn is_from_link(hop_limit: u8, message: &[u8]) -> bool {
    let least = match message.first() {
        Some(&ROUTER_SOLICITATION) => 8,
        Some(&ROUTER_ADVERTISEMENT) => 16,
        _ => 24,
    };
    hop_limit == HOP_LIMIT && message.len() >= least
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::chance::Chance;
    use crate::testing::ndp::{advertised_lifetime, advertised_options};

    const MAC: MacAddr = MacAddr([2, 0x4c, 10, 88, 0, 2]);

    fn solicited() -> Vec<u8> {
        let mut message = solicitation("fd00::1".parse().unwrap(), MAC);
        message.extend_from_slice(&[NONCE, 1, 1, 2, 3, 4, 5, 6]);
        message
    }

    #[test]
    fn a_solicitation_is_read_with_its_options() {
        let target = "fd00::1".parse().unwrap();
        let source = Some(MAC);
        assert_eq!(
            Ndp::parse(&solicited()),
            Some(Ndp::NeighbourSolicitation { target, source, nonce: Some([1, 2, 3, 4, 5, 6]) })
        );
        let plain = [ROUTER_SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(Ndp::parse(&plain), Some(Ndp::RouterSolicitation { source: None }));
    }

    #[test]
    fn an_advertisement_reads_what_it_writes() {
        let advertisement = Advertisement {
            target: "fd00::2".parse().unwrap(),
            mac: MAC,
            role: Role::Router,
            occasion: Occasion::Asked,
        };
        let message = advertisement.emit();
        assert_eq!(message[4], 0xe0);
        let target = advertisement.target;
        assert_eq!(
            Ndp::parse(&message),
            Some(Ndp::NeighbourAdvertisement { target, mac: Some(MAC) })
        );
    }

    #[test]
    fn malformed_options_make_a_message_nothing() {
        let mut zero = solicited();
        zero[33] = 0;
        assert_eq!(Ndp::parse(&zero), None, "an option of no length");
        let mut long = solicited();
        long[25] = 9;
        assert_eq!(Ndp::parse(&long), None, "an option that runs over the end");
        let mut group = solicited();
        group[8] = 0xff;
        assert_eq!(Ndp::parse(&group), None, "a group as target");
        let mut code = solicited();
        code[1] = 1;
        assert_eq!(Ndp::parse(&code), None);
        let many = [&solicited()[..24], &[99, 1, 0, 0, 0, 0, 0, 0].repeat(17)].concat();
        assert_eq!(Ndp::parse(&many), None, "more options than anybody sends");
    }

    #[test]
    fn a_router_advertisement_says_everything_that_makes_an_interface_work() {
        let prefix: Ipv6Prefix = "fd12:3456:789a:1::/64".parse().unwrap();
        let message = RouterAdvertisement {
            mac: MAC,
            router_lifetime: Duration::from_secs(1800),
            prefix,
            lifetime: Duration::from_secs(86_400),
            mtu: 1500,
            resolver: prefix.with_interface_id(1),
            search: "bridge.internal",
            nat64: None,
        }
        .emit();
        assert_eq!(advertised_lifetime(&message), Some(1800));
        assert_eq!(message.len() % 8, 0);
        let options = advertised_options(&message);
        let kinds: Vec<u8> = options.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [1, 5, 3, 25, 31]);
        assert_eq!(options[1].1[2..], 1500_u32.to_be_bytes());
        assert_eq!(options[2].1[..2], [64, 0xc0]);
        assert_eq!(options[2].1[14..], prefix.address().octets());
        assert_eq!(options[3].1[6..], prefix.with_interface_id(1).octets());
        assert_eq!(options[4].1[6..24], *b"\x06bridge\x08internal\0\0");
        assert_eq!(Ndp::parse(&message), Some(Ndp::FromRouter));
    }

    /// The option as RFC 8781 4 draws it.
    #[test]
    fn the_prefix_of_nat64_is_told_with_the_routers_lifetime() {
        let advertise = |router_lifetime| {
            let prefix: Ipv6Prefix = "fd12:3456:789a:1::/64".parse().unwrap();
            let message = RouterAdvertisement {
                mac: MAC,
                router_lifetime: Duration::from_secs(router_lifetime),
                prefix,
                lifetime: Duration::from_secs(86_400),
                mtu: 1500,
                resolver: prefix.with_interface_id(1),
                search: "bridge.internal",
                nat64: Some("64:ff9b::/96".parse().unwrap()),
            }
            .emit();
            assert_eq!(message.len() % 8, 0);
            message[message.len() - 16..].to_vec()
        };
        let mut wanted = vec![38, 2, 0x07, 0x08, 0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(advertise(1800), wanted, "225 units of eight seconds, and code 0");
        wanted[2..4].fill(0);
        assert_eq!(advertise(0), wanted, "no longer good");
        wanted[2..4].copy_from_slice(&[0xff, 0xf8]);
        assert_eq!(advertise(65_535), wanted, "no more than thirteen bits hold");
        wanted[2..4].copy_from_slice(&[0, 0x10]);
        assert_eq!(advertise(9), wanted, "never shorter than it is");
    }

    #[test]
    fn the_group_of_an_address_ends_as_it_does() {
        let group = solicited_node("fd00::2:1234:5678".parse().unwrap());
        assert_eq!(group.to_string(), "ff02::1:ff34:5678");
    }

    #[test]
    fn no_prefix_and_no_mutation_makes_the_parser_panic() {
        let whole = solicited();
        for len in 0..whole.len() {
            let _ = Ndp::parse(&whole[..len]);
            let _ = advertised_options(&whole[..len]);
        }
        let mut chance = Chance::seeded();
        for _ in 0..200_000 {
            let bytes = chance.mutate(&whole);
            let _ = Ndp::parse(&bytes);
        }
    }
}
