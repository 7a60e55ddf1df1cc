//! The virtio-net header (virtio 1.2, 5.1.6), as a tap with `IFF_VNET_HDR` and a vhost-user ring carry it.

use crate::counters::DropReason;
use crate::wire::ETHERNET_LEN;
use crate::wire::headers::{ChecksumState, Headers, Network, Transport};

/// Bytes of the header with `num_buffers` (TUNSETVNETHDRSZ 12).
pub const VNET_LEN: usize = 12;
/// Most pieces that one frame is cut into: no guest may turn one frame into thousands. Linux makes as many
/// datagrams of one (`UDP_MAX_SEGMENTS`, 64 before Linux 6.9), and 122 of TCP's least usual size of 536.
pub const MAX_SEGMENTS: usize = 128;
const NEEDS_CSUM: u8 = 1;
const ECN: u8 = 0x80;

/// What of a frame is left to be done by who receives it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHeader {
    /// The checksum to complete.
    pub checksum: Option<PartialChecksum>,
    /// The segmentation to do.
    pub gso: Option<Gso>,
}

/// A transport checksum whose field holds the pseudo-header's sum only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartialChecksum {
    /// Where summing starts, from the start of the frame.
    pub start: u16,
    /// Where the field lies, from `start`.
    pub offset: u16,
}

/// A frame that stands for several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gso {
    /// How to cut it.
    pub kind: GsoKind,
    /// Bytes of transport payload in each piece.
    pub size: u16,
    /// The sender's hint of where headers end; zero when it gave none.
    pub header_len: u16,
    /// TCP's CWR may only be in the first piece.
    pub ecn: bool,
}

/// How a frame is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GsoKind {
    /// TCP over IPv4 (GSO_TCPV4).
    Tcpv4,
    /// TCP over IPv6 (GSO_TCPV6).
    Tcpv6,
    /// UDP datagrams of equal length (GSO_UDP_L4).
    UdpL4,
}

impl Gso {
    /// How many pieces that much payload is cut into. Its size is not zero.
    pub fn pieces(self, payload_len: usize) -> Result<usize, DropReason> {
        let count = payload_len.div_ceil(self.size.into()).max(1);
        if count > MAX_SEGMENTS { Err(DropReason::VnetHeader) } else { Ok(count) }
    }
}

impl VnetHeader {
    /// Parses the header's fixed fields; what it says of the frame is checked by [`VnetHeader::check`].
    #[inline(always)]
    pub fn parse(bytes: &[u8; VNET_LEN]) -> Result<Self, DropReason> {
        let le16 = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let checksum = (bytes[0] & NEEDS_CSUM != 0)
            .then(|| PartialChecksum { start: le16(6), offset: le16(8) });
        let kind = match bytes[1] & !ECN {
            0 if bytes[1] == 0 => None,
            1 => Some(GsoKind::Tcpv4),
            4 => Some(GsoKind::Tcpv6),
            5 => Some(GsoKind::UdpL4),
            _ => return Err(DropReason::VnetHeader),
        };
        let gso = kind.map(|kind| Gso {
            kind,
            size: le16(4),
            header_len: le16(2),
            ecn: bytes[1] & ECN != 0,
        });
        Ok(Self { checksum, gso })
    }

    /// Writes the header.
    pub fn emit(&self) -> [u8; VNET_LEN] {
        let mut bytes = [0; VNET_LEN];
        if let Some(checksum) = self.checksum {
            bytes[0] = NEEDS_CSUM;
            bytes[6..8].copy_from_slice(&checksum.start.to_le_bytes());
            bytes[8..10].copy_from_slice(&checksum.offset.to_le_bytes());
        }
        if let Some(gso) = self.gso {
            bytes[1] = match gso.kind {
                GsoKind::Tcpv4 => 1,
                GsoKind::Tcpv6 => 4,
                GsoKind::UdpL4 => 5,
            } | if gso.ecn { ECN } else { 0 };
            bytes[2..4].copy_from_slice(&gso.header_len.to_le_bytes());
            bytes[4..6].copy_from_slice(&gso.size.to_le_bytes());
        }
        bytes[10] = 1;
        bytes
    }

    /// Who has computed the transport checksum.
    pub fn checksum_state(&self) -> ChecksumState {
        match self.checksum {
            Some(_) => ChecksumState::Partial,
            None => ChecksumState::Full,
        }
    }

    /// Refuses a header that contradicts its frame, and a frame that is larger than `mtu` allows.
    #[inline(always)]
    pub fn check(&self, headers: &Headers, frame_len: usize, mtu: u16) -> Result<(), DropReason> {
        let (header_len, transport, tcp, total_len) = match &headers.network {
            Network::Ipv4(ip) => (ip.header_len, &ip.transport, GsoKind::Tcpv4, ip.total_len),
            Network::Ipv6(ip) => (ip.header_len, &ip.transport, GsoKind::Tcpv6, ip.total_len),
            Network::Arp(_) => {
                return if self.checksum.is_some() || self.gso.is_some() {
                    Err(DropReason::VnetHeader)
                } else {
                    Ok(())
                };
            }
        };
        if let Some(checksum) = self.checksum {
            let expected = match transport {
                Transport::Tcp(_) => 16,
                Transport::Udp(_) => 6,
                _ => return Err(DropReason::VnetHeader),
            };
            if usize::from(checksum.start) != ETHERNET_LEN + header_len
                || checksum.offset != expected
            {
                return Err(DropReason::VnetHeader);
            }
        }
        match self.gso {
            None if frame_len > ETHERNET_LEN + usize::from(mtu) => Err(DropReason::L2Oversize),
            None => Ok(()),
            Some(gso) => self.check_gso(gso, tcp, (header_len, transport, total_len), mtu),
        }
    }

    #[inline(always)]
    fn check_gso(
        &self,
        gso: Gso,
        tcp: GsoKind,
        (header_len, transport, total_len): (usize, &Transport, usize),
        mtu: u16,
    ) -> Result<(), DropReason> {
        let transport_len = match (gso.kind, transport) {
            (kind, Transport::Tcp(header)) if kind == tcp => header.header_len,
            (GsoKind::UdpL4, Transport::Udp(_)) => crate::wire::udp::UDP_LEN,
            _ => return Err(DropReason::VnetHeader),
        };
        let piece = header_len + transport_len + usize::from(gso.size);
        if self.checksum.is_none() || gso.size == 0 || piece > usize::from(mtu) {
            return Err(DropReason::VnetHeader);
        }
        // Whoever cuts it, here or at its receiver, makes one datagram of each piece.
        if gso.kind == GsoKind::UdpL4 {
            gso.pieces(total_len.saturating_sub(header_len + transport_len))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_reads_what_it_writes() {
        let header = VnetHeader {
            checksum: Some(PartialChecksum { start: 34, offset: 16 }),
            gso: Some(Gso { kind: GsoKind::Tcpv4, size: 1448, header_len: 66, ecn: true }),
        };
        assert_eq!(VnetHeader::parse(&header.emit()), Ok(header));
        assert_eq!(VnetHeader::parse(&VnetHeader::default().emit()), Ok(VnetHeader::default()));
    }

    #[test]
    fn unknown_segmentations_are_refused() {
        for (kind, reason) in [
            (3, DropReason::VnetHeader),
            (0xff, DropReason::VnetHeader),
            (ECN, DropReason::VnetHeader),
            (2, DropReason::VnetHeader),
        ] {
            let mut bytes = VnetHeader::default().emit();
            bytes[1] = kind;
            assert_eq!(VnetHeader::parse(&bytes), Err(reason));
        }
    }
}
