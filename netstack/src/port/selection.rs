//! What somebody who records frames wants to see of them: of which flow, and whether large ones are cut.

use std::net::{IpAddr, SocketAddr};

use crate::command::{CapturedFlow, FlowProtocol, LargeFrames};
use crate::frame::offload;
use crate::frame::vnet_header::{VNET_LEN, VnetHeader};
use crate::wire::headers::{ChecksumState, Headers, Network, Transport};
use crate::wire::icmp::{self, PROTOCOL_ICMP};
use crate::wire::icmp6;
use crate::wire::tcp::PROTOCOL_TCP;
use crate::wire::udp::PROTOCOL_UDP;

/// Which frames, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Selection {
    /// Those of one flow; `None` means all.
    pub flow: Option<CapturedFlow>,
    /// How those are shown that stand for several.
    pub large: LargeFrames,
    /// Largest IP packet of the port's network.
    pub mtu: u16,
}

impl Selection {
    /// Hands to `show` what is wanted of a frame, Ethernet header first; `vnet` stands before it.
    pub fn pick(&self, vnet: &[u8; VNET_LEN], frame: &[u8], mut show: impl FnMut(&[u8])) {
        if self.flow.is_none() && self.large == LargeFrames::Whole {
            return show(frame);
        }
        // Of no flow, and nothing to cut, is what cannot be parsed. Whether a checksum is right is not asked.
        let headers = Headers::parse(frame, ChecksumState::Partial).ok();
        let is_wanted = match (&self.flow, &headers) {
            (None, _) => true,
            (Some(flow), Some(headers)) => flow.has(headers),
            (Some(_), None) => false,
        };
        if !is_wanted {
            return;
        }
        match headers.filter(|_| self.large == LargeFrames::Cut) {
            Some(headers) => self.as_on_a_wire(vnet, frame, &headers, show),
            None => show(frame),
        }
    }

    /// Shows a frame as it would look on a wire. One that its port is about to drop is shown as it is.
    fn as_on_a_wire(
        &self,
        vnet: &[u8; VNET_LEN],
        frame: &[u8],
        headers: &Headers,
        mut show: impl FnMut(&[u8]),
    ) {
        let vnet = VnetHeader::parse(vnet);
        let checked = vnet.and_then(|it| it.check(headers, frame.len(), self.mtu).map(|()| it));
        match checked {
            Ok(VnetHeader { gso: Some(gso), .. }) => {
                let mut pieces = 0;
                let cut = offload::segment(frame, headers, gso, |piece| {
                    pieces += 1;
                    show(&piece[VNET_LEN..]);
                });
                if cut.is_err() && pieces == 0 {
                    show(frame);
                }
            }
            Ok(VnetHeader { checksum: Some(partial), .. }) => {
                let mut complete = frame.to_vec();
                offload::complete_checksum(&mut complete, partial);
                show(&complete);
            }
            Ok(_) | Err(_) => show(frame),
        }
    }
}

impl CapturedFlow {
    /// Whether a frame belongs to the flow, in either direction. A fragment that has no ports does where its addresses and
    /// protocol are the flow's.
    fn has(&self, headers: &Headers) -> bool {
        let (source, destination, protocol, transport): (IpAddr, IpAddr, u8, &Transport) =
            match &headers.network {
                Network::Ipv4(ip) => {
                    (ip.source.into(), ip.destination.into(), ip.protocol, &ip.transport)
                }
                Network::Ipv6(ip) => {
                    (ip.source.into(), ip.destination.into(), ip.protocol, &ip.transport)
                }
                Network::Arp(_) => return false,
            };
        let is_protocol = match self.protocol {
            FlowProtocol::Tcp => protocol == PROTOCOL_TCP,
            FlowProtocol::Udp => protocol == PROTOCOL_UDP,
            FlowProtocol::Icmp => matches!(protocol, PROTOCOL_ICMP | icmp6::PROTOCOL_ICMPV6),
        };
        let ports = match transport {
            Transport::Tcp(tcp) => Some((tcp.source_port, tcp.destination_port)),
            Transport::Udp(udp) => Some((udp.source_port, udp.destination_port)),
            Transport::Fragment(ports) => *ports,
            // Only an echo has an identifier, which stands for the guest's port.
            Transport::Icmp(icmp) => match icmp.kind {
                icmp::ECHO_REQUEST | icmp6::ECHO_REQUEST => Some((icmp.identifier, 0)),
                icmp::ECHO_REPLY | icmp6::ECHO_REPLY => Some((0, icmp.identifier)),
                _ => return false,
            },
            Transport::Other => return false,
        };
        let is_between = |from: SocketAddr, to: SocketAddr| {
            (from.ip(), to.ip()) == (source, destination)
                && ports.is_none_or(|ports| ports == (from.port(), to.port()))
        };
        let (guest, remote) = (self.guest, self.remote);
        is_protocol && (is_between(guest, remote) || is_between(remote, guest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::vnet_header::{Gso, GsoKind, PartialChecksum};
    use crate::ids::MacAddr;
    use crate::testing::frames::{Segment, echo_request, ethernet, packet_with, udp};
    use crate::wire::ETHERNET_LEN;
    use crate::wire::ipv4::IPV4_LEN;
    use crate::wire::tcp::{Flags, TCP_LEN};

    const NOTHING_LEFT: [u8; VNET_LEN] = [0; VNET_LEN];

    fn end(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn of(protocol: FlowProtocol, guest: &str, remote: &str) -> Selection {
        let flow = CapturedFlow { protocol, guest: end(guest), remote: end(remote) };
        Selection { flow: Some(flow), large: LargeFrames::Whole, mtu: 1500 }
    }

    fn cut() -> Selection {
        Selection { flow: None, large: LargeFrames::Cut, mtu: 1500 }
    }

    /// From the Ethernet header on.
    fn frame(packet: &[u8]) -> Vec<u8> {
        let ethertype = if packet[0] >> 4 == 6 { 0x86dd } else { 0x0800 };
        ethernet(MacAddr([2; 6]), MacAddr([4; 6]), ethertype, packet).split_off(VNET_LEN)
    }

    fn picked(selection: &Selection, vnet: &[u8; VNET_LEN], frame: &[u8]) -> Vec<Vec<u8>> {
        let mut shown = Vec::new();
        selection.pick(vnet, frame, |piece| shown.push(piece.to_vec()));
        shown
    }

    fn is_shown(selection: &Selection, packet: &[u8]) -> bool {
        !picked(selection, &NOTHING_LEFT, &frame(packet)).is_empty()
    }

    fn segment(from: &str, to: &str) -> Vec<u8> {
        Segment::new(Flags::ACK, 1, 1).with(b"data").emit(end(from), end(to))
    }

    #[test]
    fn of_a_flow_both_directions_are_shown_and_no_other_flow() {
        for (guest, remote, other) in [
            ("10.88.0.2:4000", "192.0.2.1:443", "192.0.2.2:443"),
            ("[fd00::2]:4000", "[2001:db8::1]:443", "[2001:db8::2]:443"),
        ] {
            let wanted = of(FlowProtocol::Tcp, guest, remote);
            assert!(is_shown(&wanted, &segment(guest, remote)));
            assert!(is_shown(&wanted, &segment(remote, guest)));
            // Whichever end was named first.
            assert!(is_shown(&of(FlowProtocol::Tcp, remote, guest), &segment(guest, remote)));
            assert!(!is_shown(&wanted, &segment(guest, other)));
            let mut neighbour = end(guest);
            neighbour.set_port(4001);
            assert!(!is_shown(&wanted, &segment(&neighbour.to_string(), remote)));
            assert!(!is_shown(&wanted, &udp(end(guest), end(remote), b"data")));
            let datagrams = of(FlowProtocol::Udp, guest, remote);
            assert!(is_shown(&datagrams, &udp(end(remote), end(guest), b"data")));
        }
    }

    #[test]
    fn a_ping_is_a_flow_by_its_identifier_and_a_fragment_by_its_addresses() {
        let wanted = of(FlowProtocol::Icmp, "10.88.0.2:4660", "192.0.2.1:0");
        let ping = |to: [u8; 4]| echo_request([10, 88, 0, 2].into(), to.into(), 1, b"data");
        assert!(is_shown(&wanted, &ping([192, 0, 2, 1])));
        assert!(!is_shown(&wanted, &ping([192, 0, 2, 2])));
        let other = of(FlowProtocol::Icmp, "10.88.0.2:4661", "192.0.2.1:0");
        assert!(!is_shown(&other, &ping([192, 0, 2, 1])));
        let later = packet_with([10, 88, 0, 2].into(), [192, 0, 2, 1].into(), 17, &[1; 64], |it| {
            it[7] = 8;
        });
        assert!(is_shown(&of(FlowProtocol::Udp, "10.88.0.2:4000", "192.0.2.1:9"), &later));
        assert!(!is_shown(&of(FlowProtocol::Udp, "10.88.0.2:4000", "192.0.2.2:9"), &later));
    }

    #[test]
    fn what_cannot_be_parsed_is_of_no_flow_and_is_shown_where_all_is() {
        let wanted = of(FlowProtocol::Tcp, "10.88.0.2:4000", "192.0.2.1:443");
        let cut_off = frame(&[0x45; 20]);
        for garbage in [&[][..], &[7; 13][..], &[7; 60][..], cut_off.as_slice()] {
            assert!(picked(&wanted, &NOTHING_LEFT, garbage).is_empty());
            assert_eq!(picked(&cut(), &NOTHING_LEFT, garbage), [garbage]);
        }
    }

    /// A TCP segment as Linux sends it, of which the checksum is left to do, and the header that says so.
    fn left_to_do(len: usize, size: Option<u16>) -> ([u8; VNET_LEN], Vec<u8>) {
        let (guest, remote) = (end("10.88.0.2:4000"), end("192.0.2.1:443"));
        let packet = Segment::new(Flags::ACK, 1, 1).with(&vec![7; len]).emit(guest, remote);
        let start = u16::try_from(ETHERNET_LEN + IPV4_LEN).unwrap();
        let header_len = start + u16::try_from(TCP_LEN).unwrap();
        let mut frame = frame(&packet);
        let pseudo = crate::wire::checksum::pseudo_header_between(
            guest.ip(),
            remote.ip(),
            PROTOCOL_TCP,
            TCP_LEN + len,
        );
        let field = usize::from(start) + 16;
        let sum = crate::wire::checksum::fold(pseudo);
        frame[field..field + 2].copy_from_slice(&sum.to_be_bytes());
        let vnet = VnetHeader {
            checksum: Some(PartialChecksum { start, offset: 16 }),
            gso: size.map(|size| Gso { kind: GsoKind::Tcpv4, size, header_len, ecn: false }),
        };
        (vnet.emit(), frame)
    }

    #[test]
    fn large_frames_are_shown_whole_or_as_a_wire_would_carry_them() {
        let (vnet, frame) = left_to_do(4000, Some(1448));
        let whole = Selection { large: LargeFrames::Whole, ..cut() };
        assert_eq!(picked(&whole, &vnet, &frame), [frame.as_slice()]);
        let pieces = picked(&cut(), &vnet, &frame);
        let lens: Vec<usize> = pieces.iter().map(|piece| piece.len() - 54).collect();
        assert_eq!(lens, [1448, 1448, 1104]);
        for piece in &pieces {
            Headers::parse(piece, ChecksumState::Full).expect("whole checksums");
        }
        let (vnet, frame) = left_to_do(100, None);
        Headers::parse(&frame, ChecksumState::Full).expect_err("it is not done yet");
        let complete = picked(&cut(), &vnet, &frame);
        Headers::parse(&complete[0], ChecksumState::Full).expect("a whole checksum");
        assert_eq!(complete.len(), 1);
    }

    #[test]
    fn a_frame_whose_header_contradicts_it_is_shown_as_it_is() {
        let (_, frame) = left_to_do(4000, None);
        let lies = Gso { kind: GsoKind::UdpL4, size: 0, header_len: 9999, ecn: false };
        let lies = VnetHeader { gso: Some(lies), ..VnetHeader::default() }.emit();
        for vnet in [NOTHING_LEFT, [0xff; VNET_LEN], lies] {
            assert_eq!(picked(&cut(), &vnet, &frame), [frame.as_slice()]);
        }
    }
}
