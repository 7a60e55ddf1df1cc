//! Names of things, as types, so that a port is never mistaken for a network.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u32);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// One attachment to one network. An attachment's identity is this number, never its address:
    /// two forks of one machine may carry the same MAC and IP.
    PortId
);
id!(
    /// One virtual network, that is one switch domain.
    NetworkId
);
id!(
    /// One published port.
    ForwardId
);

/// An Ethernet address (IEEE 802, 48 bits), written `02:4c:00:00:00:01`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MacAddr(pub [u8; 6]);

impl Hash for MacAddr {
    /// One word, where an array would be a length and a slice: every frame between two ports is looked up.
    fn hash<H: Hasher>(&self, state: &mut H) {
        let [a, b, c, d, e, g] = self.0;
        state.write_u64(u64::from_le_bytes([a, b, c, d, e, g, 0, 0]));
    }
}

impl MacAddr {
    /// `ff:ff:ff:ff:ff:ff`.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Group addresses, broadcast included (IEEE 802 I/G bit).
    pub fn is_multicast(self) -> bool {
        self.0[0] & 1 == 1
    }

    /// All octets zero, which no station may use.
    pub fn is_zero(self) -> bool {
        self.0 == [0; 6]
    }

    /// The locally administered address that belongs to an IPv4 address on a network: `02:4c`
    /// followed by the address. Unique within a network because addresses are.
    pub fn for_ipv4(address: Ipv4Addr) -> Self {
        let [a, b, c, d] = address.octets();
        Self([0x02, 0x4c, a, b, c, d])
    }

    /// The address that this one belongs to, if it is [`MacAddr::for_ipv4`] of one.
    pub fn to_ipv4(self) -> Option<Ipv4Addr> {
        match self.0 {
            [0x02, 0x4c, a, b, c, d] => Some(Ipv4Addr::new(a, b, c, d)),
            _ => None,
        }
    }

    /// The group address that an IPv6 multicast address is sent to (RFC 2464 7).
    pub fn for_ipv6_multicast(group: Ipv6Addr) -> Self {
        let [.., a, b, c, d] = group.octets();
        Self([0x33, 0x33, a, b, c, d])
    }

    /// The modified EUI-64 interface identifier (RFC 4291 appendix A), the lower half of an address that a
    /// guest makes for itself (RFC 4862 5.5.3).
    pub fn interface_id(self) -> u64 {
        let [a, b, c, d, e, g] = self.0;
        u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, g])
    }

    /// The address that an interface identifier was made from, if it is a [`MacAddr::interface_id`].
    pub fn from_interface_id(id: u64) -> Option<Self> {
        match id.to_be_bytes() {
            [a, b, c, 0xff, 0xfe, d, e, g] => Some(Self([a ^ 2, b, c, d, e, g])),
            _ => None,
        }
    }

    /// The link-local address of an interface with this address (RFC 4862 5.3).
    pub fn link_local(self) -> Ipv6Addr {
        Ipv6Addr::from_bits(0xfe80 << 112 | u128::from(self.interface_id()))
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not six two-digit hexadecimal octets joined by colons.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a MAC address; write six octets such as 02:4c:0a:58:00:02")]
pub struct ParseMacError(String);

impl FromStr for MacAddr {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseMacError(text.chars().take(40).collect());
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().ok_or_else(error)?;
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(error());
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| error())?;
        }
        if parts.next().is_some() { Err(error()) } else { Ok(Self(octets)) }
    }
}

impl Serialize for MacAddr {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddr {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// How a prefix is written and read, in JSON too: `address/len`, and why a text is none.
macro_rules! prefix_text {
    ($name:ident, $address:ident, $error:ident, $digits:literal, $what:literal) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}/{}", self.address, self.len)
            }
        }

        /// Why a text is no such prefix.
        #[derive(Debug, PartialEq, Eq, thiserror::Error)]
        pub enum $error {
            /// Not `address/len`.
            #[error("`{0}` is not {what}", what = $what)]
            Shape(String),
            /// Host bits are set.
            #[error("`{given}` has host bits set; did you mean {meant}?")]
            HostBits {
                /// What was written.
                given: String,
                /// The prefix that contains it.
                meant: $name,
            },
        }

        impl FromStr for $name {
            type Err = $error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let shape = || $error::Shape(text.chars().take(60).collect());
                let (address, len) = text.split_once('/').ok_or_else(shape)?;
                let address: $address = address.parse().map_err(|_| shape())?;
                if len.is_empty() || len.len() > $digits || !len.bytes().all(|b| b.is_ascii_digit())
                {
                    return Err(shape());
                }
                let len: u8 = len.parse().map_err(|_| shape())?;
                let prefix = Self::containing(address, len).ok_or_else(shape)?;
                if prefix.address == address {
                    Ok(prefix)
                } else {
                    Err($error::HostBits { given: text.to_owned(), meant: prefix })
                }
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

/// An IPv4 prefix such as `10.88.0.0/16`; host bits are always zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ipv4Prefix {
    address: Ipv4Addr,
    len: u8,
}

impl Ipv4Prefix {
    /// The prefix of `len` bits (0..=32) that contains `address`; `None` for a longer one.
    pub fn containing(address: Ipv4Addr, len: u8) -> Option<Self> {
        (len <= 32).then(|| Self {
            address: Ipv4Addr::from_bits(address.to_bits() & Self::mask_bits(len)),
            len,
        })
    }

    /// The lowest address.
    pub fn address(self) -> Ipv4Addr {
        self.address
    }

    /// Number of leading bits that are fixed, 0..=32.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(self) -> u8 {
        self.len
    }

    /// `255.255.0.0` for a /16.
    pub fn netmask(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(Self::mask_bits(self.len))
    }

    /// The highest address, which is the directed broadcast address of a subnet.
    pub fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.address.to_bits() | !Self::mask_bits(self.len))
    }

    /// Whether `address` lies in this prefix.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & Self::mask_bits(self.len) == self.address.to_bits()
    }

    /// Whether the two share an address.
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.address) || other.contains(self.address)
    }

    fn mask_bits(len: u8) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0)
    }
}

prefix_text!(
    Ipv4Prefix,
    Ipv4Addr,
    ParsePrefixError,
    2,
    "an IPv4 subnet; write one such as 10.89.0.0/16"
);

/// An IPv6 prefix such as `fd12:3456:789a:1::/64`; host bits are always zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ipv6Prefix {
    address: Ipv6Addr,
    len: u8,
}

impl Ipv6Prefix {
    /// The prefix of `len` bits (0..=128) that contains `address`; `None` for a longer one.
    pub fn containing(address: Ipv6Addr, len: u8) -> Option<Self> {
        (len <= 128).then(|| Self {
            address: Ipv6Addr::from_bits(address.to_bits() & Self::mask_bits(len)),
            len,
        })
    }

    /// The lowest address.
    pub fn address(self) -> Ipv6Addr {
        self.address
    }

    /// Number of leading bits that are fixed, 0..=128.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(self) -> u8 {
        self.len
    }

    /// Whether `address` lies in this prefix.
    pub fn contains(self, address: Ipv6Addr) -> bool {
        address.to_bits() & Self::mask_bits(self.len) == self.address.to_bits()
    }

    /// Whether the two share an address.
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.address) || other.contains(self.address)
    }

    /// The address of this prefix with that interface identifier; of a longer prefix than /64 the identifier
    /// counts as far as it reaches.
    pub fn with_interface_id(self, id: u64) -> Ipv6Addr {
        let host = u128::from(id) & !Self::mask_bits(self.len);
        Ipv6Addr::from_bits(self.address.to_bits() | host)
    }

    fn mask_bits(len: u8) -> u128 {
        u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0)
    }
}

prefix_text!(
    Ipv6Prefix,
    Ipv6Addr,
    ParsePrefix6Error,
    3,
    "an IPv6 subnet; write one such as fd12:3456:789a:1::/64"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_knows_its_edges() {
        let prefix: Ipv4Prefix = "10.88.0.0/16".parse().unwrap();
        assert_eq!(prefix.netmask(), Ipv4Addr::new(255, 255, 0, 0));
        assert_eq!(prefix.broadcast(), Ipv4Addr::new(10, 88, 255, 255));
        assert!(prefix.contains(Ipv4Addr::new(10, 88, 255, 254)));
        assert!(!prefix.contains(Ipv4Addr::new(10, 89, 0, 0)));
        assert!("0.0.0.0/0".parse::<Ipv4Prefix>().unwrap().overlaps(prefix));
    }

    #[test]
    fn a_prefix_with_host_bits_is_refused_with_the_one_that_was_meant() {
        let error = "10.88.0.1/16".parse::<Ipv4Prefix>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "`10.88.0.1/16` has host bits set; did you mean 10.88.0.0/16?"
        );
        for text in ["", "10.88.0.0", "10.88.0.0/33", "10.88.0.0/+1", "10.88.0.0/", "fd00::/8"] {
            assert!(
                matches!(text.parse::<Ipv4Prefix>(), Err(ParsePrefixError::Shape(_))),
                "{text}"
            );
        }
    }

    #[test]
    fn a_mac_address_reads_what_it_writes() {
        let mac = MacAddr::for_ipv4(Ipv4Addr::new(10, 88, 0, 2));
        assert_eq!(mac.to_string(), "02:4c:0a:58:00:02");
        assert_eq!("02:4c:0a:58:00:02".parse(), Ok(mac));
        assert_eq!(mac.to_ipv4(), Some(Ipv4Addr::new(10, 88, 0, 2)));
        assert_eq!(MacAddr([2; 6]).to_ipv4(), None);
        for text in
            ["", "02:4c:0a:58:00", "02:4c:0a:58:00:02:03", "2:4c:0a:58:00:02", "gg:4c:0a:58:00:02"]
        {
            assert!(text.parse::<MacAddr>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_ipv6_prefix_reads_what_it_writes_and_knows_its_edges() {
        let prefix: Ipv6Prefix = "fd12:3456:789a:1::/64".parse().unwrap();
        assert_eq!(prefix.to_string(), "fd12:3456:789a:1::/64");
        assert!(prefix.contains("fd12:3456:789a:1:ffff::1".parse().unwrap()));
        assert!(!prefix.contains("fd12:3456:789a:2::1".parse().unwrap()));
        assert!("::/0".parse::<Ipv6Prefix>().unwrap().overlaps(prefix));
        assert_eq!(prefix.with_interface_id(2).to_string(), "fd12:3456:789a:1::2");
        assert_eq!(
            "fd12::1/64".parse::<Ipv6Prefix>().unwrap_err().to_string(),
            "`fd12::1/64` has host bits set; did you mean fd12::/64?"
        );
        for text in
            ["", "fd00::", "fd00::/129", "fd00::/+1", "fd00::/", "10.0.0.0/8", "fd00::/0064"]
        {
            let parsed = text.parse::<Ipv6Prefix>();
            assert!(matches!(parsed, Err(ParsePrefix6Error::Shape(_))), "{text}");
        }
    }

    #[test]
    fn an_interface_identifier_is_that_of_rfc_4291() {
        let mac = MacAddr([0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde]);
        assert_eq!(mac.link_local().to_string(), "fe80::3656:78ff:fe9a:bcde");
        assert_eq!(MacAddr::from_interface_id(mac.interface_id()), Some(mac));
        assert_eq!(MacAddr::from_interface_id(2), None);
        let group = "ff02::1:ff00:2".parse().unwrap();
        assert_eq!(MacAddr::for_ipv6_multicast(group).to_string(), "33:33:ff:00:00:02");
    }
}
