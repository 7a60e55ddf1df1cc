//! The Internet checksum (RFC 1071).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Adds `bytes` to a running sum; an odd last byte counts as the high half of a word. Only the last
/// piece of a sum may be odd.
#[inline]
pub fn add(sum: u64, bytes: &[u8]) -> u64 {
    let mut sum = sum;
    let mut words = bytes.chunks_exact(8);
    for word in &mut words {
        let word = u64::from_be_bytes(word.try_into().expect("chunks of eight"));
        // Two 32-bit halves added apart: a u64 holds the carries of four billion such additions.
        sum += (word >> 32) + (word & 0xffff_ffff);
    }
    let mut rest = words.remainder();
    if let Some((word, after)) = rest.split_first_chunk::<4>() {
        sum += u64::from(u32::from_be_bytes(*word));
        rest = after;
    }
    // Not copied into a word: a copy of unknown length is a call, and most headers end before this.
    for (byte, shift) in rest.iter().zip([24, 16, 8]) {
        sum += u64::from(*byte) << shift;
    }
    sum
}

/// Folds a running sum into sixteen bits, without the final complement.
#[inline]
pub fn fold(sum: u64) -> u16 {
    let mut sum = (sum >> 32) + (sum & 0xffff_ffff);
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    u16::try_from(sum).expect("folded below 65536")
}

/// The sum over the TCP and UDP pseudo-header of IPv4; `len` is the transport's length in bytes.
#[inline]
pub fn pseudo_header(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, len: usize) -> u64 {
    let addresses = u64::from(source.to_bits()) + u64::from(destination.to_bits());
    addresses + u64::from(protocol) + len as u64
}

/// The sum over the pseudo-header of IPv6 (RFC 8200 8.1), which ICMPv6 has too.
#[inline]
pub fn pseudo_header6(source: Ipv6Addr, destination: Ipv6Addr, protocol: u8, len: usize) -> u64 {
    let halves = |address: Ipv6Addr| add(0, &address.octets());
    halves(source) + halves(destination) + u64::from(protocol) + len as u64
}

/// The same for two ends of one family.
pub fn pseudo_header_between(source: IpAddr, destination: IpAddr, protocol: u8, len: usize) -> u64 {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            pseudo_header(source, destination, protocol, len)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            pseudo_header6(source, destination, protocol, len)
        }
        _ => unreachable!("both ends of a packet have one family"),
    }
}

/// The value of a checksum field over a finished sum.
pub fn finish(sum: u64) -> u16 {
    !fold(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_1071_sums_up() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(fold(add(0, &bytes)), 0xddf2);
    }

    #[test]
    fn any_length_equals_the_sum_of_its_words() {
        let bytes: Vec<u8> = (0..=255).cycle().take(1501).collect();
        for len in [0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 1500, 1501] {
            let slow: u64 = bytes[..len]
                .chunks(2)
                .map(|word| u64::from(word[0]) << 8 | u64::from(word.get(1).copied().unwrap_or(0)))
                .sum();
            assert_eq!(fold(add(0, &bytes[..len])), fold(slow), "length {len}");
        }
    }
}
