//! The names that addresses have: in-addr.arpa (RFC 1035 3.5) and ip6.arpa (RFC 3596 2.5).

use std::net::{Ipv4Addr, Ipv6Addr};

/// The address of 32 labels in front of `ip6.arpa`: one for each four bits, the lowest first.
pub(crate) fn address6(nibbles: &[&str]) -> Option<Ipv6Addr> {
    if nibbles.len() != 32 {
        return None;
    }
    let mut bits = 0_u128;
    for nibble in nibbles.iter().rev() {
        match (nibble.len(), u8::from_str_radix(nibble, 16)) {
            (1, Ok(nibble)) => bits = bits << 4 | u128::from(nibble),
            _ => return None,
        }
    }
    Some(Ipv6Addr::from_bits(bits))
}

/// The name of an IPv4 address.
pub(crate) fn name4(ip: Ipv4Addr) -> String {
    let [a, b, c, d] = ip.octets();
    format!("{d}.{c}.{b}.{a}.in-addr.arpa.")
}

/// The same as a message has it.
pub(crate) fn encoded4(ip: Ipv4Addr) -> Vec<u8> {
    let mut encoded = Vec::new();
    for label in name4(ip).split('.') {
        encoded.push(u8::try_from(label.len()).expect("short labels"));
        encoded.extend_from_slice(label.as_bytes());
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::question::name_at;

    #[test]
    fn an_address_is_read_from_its_nibbles_and_from_nothing_else() {
        let digits = format!("{:032x}", 0x2001_0db8_u128 << 96 | 0xf);
        let nibbles: Vec<String> = digits.chars().rev().map(String::from).collect();
        let mut nibbles: Vec<&str> = nibbles.iter().map(String::as_str).collect();
        assert_eq!(address6(&nibbles), Some("2001:db8::f".parse().unwrap()));
        assert_eq!(address6(&nibbles[1..]), None);
        for bad in ["g", "", "ff", "+"] {
            nibbles[3] = bad;
            assert_eq!(address6(&nibbles), None, "{bad}");
        }
    }

    #[test]
    fn a_name_is_encoded_with_its_root() {
        let ip = Ipv4Addr::new(192, 0, 2, 33);
        assert_eq!(name4(ip), "33.2.0.192.in-addr.arpa.");
        let encoded = encoded4(ip);
        assert_eq!(encoded, b"\x0233\x012\x010\x03192\x07in-addr\x04arpa\0");
        assert_eq!(name_at(&encoded), Some(&encoded[..]));
    }
}
