//! Of TCP (RFC 9293) only what is needed outside smoltcp: the header's fields, and segments without data.

use std::net::SocketAddr;

use super::ip::IpHeader;
use super::{be16, be32, checksum};

/// Bytes of a header without options.
pub const TCP_LEN: usize = 20;
/// IP protocol number.
pub const PROTOCOL_TCP: u8 = 6;

/// The control bits that matter here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(pub u8);

impl Flags {
    /// No more data from the sender.
    pub const FIN: u8 = 1;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 2;
    /// Reset.
    pub const RST: u8 = 4;
    /// Push.
    pub const PSH: u8 = 8;
    /// The acknowledgement field counts.
    pub const ACK: u8 = 16;

    /// Whether all of `bits` are set.
    pub fn has(self, bits: u8) -> bool {
        self.0 & bits == bits
    }
}

/// What a TCP header says, parsed and bounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpHeader {
    /// Source port, never zero.
    pub source_port: u16,
    /// Destination port, never zero.
    pub destination_port: u16,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number, meaningful with [`Flags::ACK`].
    pub acknowledgement: u32,
    /// Control bits.
    pub flags: Flags,
    /// Window as it stands, unscaled.
    pub window: u16,
    /// Header length in bytes, options included, 20..=60.
    pub header_len: usize,
    /// Bytes of data.
    pub payload_len: usize,
}

impl TcpHeader {
    /// Parses a whole segment; `None` when it is malformed.
    #[inline(always)]
    pub fn parse(segment: &[u8]) -> Option<Self> {
        if segment.len() < TCP_LEN {
            return None;
        }
        let header_len = usize::from(segment[12] >> 4) * 4;
        let header = Self {
            source_port: be16(segment, 0),
            destination_port: be16(segment, 2),
            sequence: be32(segment, 4),
            acknowledgement: be32(segment, 8),
            flags: Flags(segment[13]),
            window: be16(segment, 14),
            header_len,
            payload_len: segment.len().checked_sub(header_len)?,
        };
        (header_len >= TCP_LEN && header.source_port != 0 && header.destination_port != 0)
            .then_some(header)
    }

    /// What the segment takes of the sequence space: data, SYN and FIN.
    pub fn sequence_len(&self) -> u32 {
        let control = u32::from(self.flags.has(Flags::SYN)) + u32::from(self.flags.has(Flags::FIN));
        u32::try_from(self.payload_len).expect("segments are below 64 KiB") + control
    }
}

/// `a < b` in sequence space.
pub fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

/// A packet with a TCP segment that carries neither data nor options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BareSegment {
    /// Who sends it.
    pub from: SocketAddr,
    /// Who gets it.
    pub to: SocketAddr,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledgement: u32,
    /// Control bits.
    pub flags: Flags,
    /// Window, unscaled.
    pub window: u16,
}

impl BareSegment {
    /// The reset that answers `header` where no connection is (RFC 9293, 3.10.7.1); `None` for a reset,
    /// which is never answered.
    pub fn reset_for(header: &TcpHeader, from: SocketAddr, to: SocketAddr) -> Option<Self> {
        if header.flags.has(Flags::RST) {
            return None;
        }
        let base = Self { from, to, sequence: 0, acknowledgement: 0, flags: Flags(0), window: 0 };
        Some(if header.flags.has(Flags::ACK) {
            Self { sequence: header.acknowledgement, flags: Flags(Flags::RST), ..base }
        } else {
            Self {
                acknowledgement: header.sequence.wrapping_add(header.sequence_len()),
                flags: Flags(Flags::RST | Flags::ACK),
                ..base
            }
        })
    }

    /// Writes the packet, checksums included.
    pub fn emit(&self) -> Vec<u8> {
        let (mut packet, ip_len) = self.headers(0);
        let sum = checksum::finish(checksum::add(self.pseudo_header(0), &packet[ip_len..]));
        packet[ip_len + 16..ip_len + 18].copy_from_slice(&sum.to_be_bytes());
        packet
    }

    /// Writes the headers of a packet with that much data behind them, and how long the IP header is. The checksum
    /// is left to whoever sends it on (it stands for the pseudo-header alone).
    pub fn emit_before(&self, payload_len: usize) -> (Vec<u8>, usize) {
        let (mut packet, ip_len) = self.headers(payload_len);
        let pseudo = checksum::fold(self.pseudo_header(payload_len));
        packet[ip_len + 16..ip_len + 18].copy_from_slice(&pseudo.to_be_bytes());
        (packet, ip_len)
    }

    fn pseudo_header(&self, payload_len: usize) -> u64 {
        let (from, to) = (self.from.ip(), self.to.ip());
        checksum::pseudo_header_between(from, to, PROTOCOL_TCP, TCP_LEN + payload_len)
    }

    /// Both headers, the checksum of TCP left out.
    fn headers(&self, payload_len: usize) -> (Vec<u8>, usize) {
        let header = IpHeader::between(self.from.ip(), self.to.ip(), PROTOCOL_TCP);
        let header = header.unfragmented().with_payload_len(TCP_LEN + payload_len);
        let mut packet = header.emit().as_slice().to_vec();
        packet.resize(header.len() + TCP_LEN, 0);
        let segment = &mut packet[header.len()..];
        segment[0..2].copy_from_slice(&self.from.port().to_be_bytes());
        segment[2..4].copy_from_slice(&self.to.port().to_be_bytes());
        segment[4..8].copy_from_slice(&self.sequence.to_be_bytes());
        segment[8..12].copy_from_slice(&self.acknowledgement.to_be_bytes());
        segment[12] = 5 << 4;
        segment[13] = self.flags.0;
        segment[14..16].copy_from_slice(&self.window.to_be_bytes());
        (packet, header.len())
    }
}

/// Finds an option in the options of a TCP header; `None` when it is absent or the options are malformed.
pub fn option(options: &[u8], wanted: u8) -> Option<&[u8]> {
    let mut rest = options;
    loop {
        match *rest {
            [0, ..] | [] => return None,
            [1, ref tail @ ..] => rest = tail,
            [kind, len, ..] => {
                let len = usize::from(len);
                if len < 2 || len > rest.len() {
                    return None;
                }
                if kind == wanted {
                    return Some(&rest[2..len]);
                }
                rest = &rest[len..];
            }
            [_] => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequence_numbers_wrap() {
        assert!(before(0xffff_fff0, 5));
        assert!(!before(5, 0xffff_fff0));
        assert!(!before(7, 7));
    }

    #[test]
    fn options_end_where_they_end() {
        assert_eq!(option(&[2, 4, 5, 0xb4, 1, 0, 3, 3, 7], 3), None);
        assert_eq!(option(&[1, 1, 2, 4, 5, 0xb4], 2), Some([5, 0xb4].as_slice()));
        for malformed in [&[2][..], &[2, 0], &[2, 1], &[2, 9, 1], &[]] {
            assert_eq!(option(malformed, 2), None);
        }
    }
}
