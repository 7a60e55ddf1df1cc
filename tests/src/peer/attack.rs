//! A workload that means harm: floods of frames, some thirty thousand a second.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::process::Command;

use lichen_netstack::frame::vnet_header::VNET_LEN;
use lichen_netstack::ids::MacAddr;
use lichen_netstack::testing::frames::{Segment, ethernet, icmp6, ip, udp};
use lichen_netstack::wire::ndp::{
    ALL_NODES, Advertisement, GATEWAY_LINK_LOCAL, Occasion, Role, solicitation, solicited_node,
};

use super::raw::PacketSocket;

const FRAMES: u32 = 100_000;

/// Sends [`FRAMES`] frames of one kind from `eth0`.
pub(super) fn attack(kind: &str, target: &str) -> io::Result<()> {
    let mut socket = PacketSocket::open("eth0")?;
    let own = Own::read()?;
    let to: Ipv4Addr = target.parse().map_err(io::Error::other)?;
    for nth in 0..FRAMES {
        let frame = own.frame(kind, to, nth).ok_or(io::ErrorKind::InvalidInput)?;
        // A packet socket's frames have no virtio-net header.
        socket.send(&frame[VNET_LEN..])?;
        // What a tap's full queue drops has cost nobody anything: the flood is as fast as is still read.
        if nth % 32 == 31 {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
    Ok(())
}

/// The workload's own addresses, which the guard lets pass.
struct Own {
    mac: MacAddr,
    gateway_mac: MacAddr,
    address: Ipv4Addr,
}

impl Own {
    fn read() -> io::Result<Self> {
        let mac = std::fs::read_to_string("/sys/class/net/eth0/address")?;
        let shown = Command::new("ip").args(["-4", "-o", "addr", "show", "eth0"]).output()?;
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        let address = shown.split_whitespace().nth(3).and_then(|cidr| cidr.split('/').next());
        let address = address.unwrap_or_default().parse().map_err(io::Error::other)?;
        Ok(Self {
            mac: mac.trim().parse().map_err(io::Error::other)?,
            gateway_mac: MacAddr::for_ipv4(Ipv4Addr::new(10, 88, 0, 1)),
            address,
        })
    }

    fn frame(&self, kind: &str, to: Ipv4Addr, nth: u32) -> Option<Vec<u8>> {
        let low = u16::try_from(nth % 60_000).expect("below 60,000") + 1024;
        let from = SocketAddrV4::new(self.address, low);
        let to_gateway = |packet: Vec<u8>| ethernet(self.mac, self.gateway_mac, 0x0800, &packet);
        Some(match kind {
            "broadcast" => {
                let everyone = SocketAddrV4::new(Ipv4Addr::BROADCAST, 9);
                ethernet(
                    self.mac,
                    MacAddr::BROADCAST,
                    0x0800,
                    &udp(from.into(), everyone.into(), b"storm"),
                )
            }
            "unknown" => {
                let [_, a, b, c] = nth.to_be_bytes();
                let nobody = MacAddr([2, 7, 7, a, b, c]);
                ethernet(
                    self.mac,
                    nobody,
                    0x0800,
                    &udp(from.into(), SocketAddrV4::new(to, 9).into(), b"x"),
                )
            }
            "syn" => to_gateway(
                Segment::syn(nth.wrapping_mul(77_777))
                    .emit(from.into(), SocketAddrV4::new(to, 80).into()),
            ),
            "udp" => to_gateway(udp(from.into(), SocketAddrV4::new(to, 9).into(), b"flow")),
            "names" => {
                let mut query = b"\x00\x00\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x08".to_vec();
                query.extend_from_slice(format!("{nth:08x}").as_bytes());
                query.extend_from_slice(b"\x07example\x00\x00\x01\x00\x01");
                to_gateway(udp(from.into(), SocketAddrV4::new(to, 53).into(), &query))
            }
            "garbage" => {
                let mut bytes = vec![0; 14 + (nth as usize * 7919) % 1400];
                let mut state = nth;
                for byte in &mut bytes {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    *byte = (state >> 24) as u8;
                }
                ethernet(self.mac, self.gateway_mac, 0x0800, &bytes)
            }
            "neighbours" => self.neighbour_frame(nth),
            "garbage6" => self.garbage6(nth),
            _ => return None,
        })
    }

    /// What only a router or another guest may say, each in its turn, and probes of ever new addresses.
    fn neighbour_frame(&self, nth: u32) -> Vec<u8> {
        let own = self.mac.link_local();
        let group = MacAddr::for_ipv6_multicast(ALL_NODES);
        let lifetime = [134, 0, 0, 0, 64, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0];
        let (from, to, message) = match nth % 6 {
            0 => (own, ALL_NODES, lifetime.to_vec()),
            1 => (GATEWAY_LINK_LOCAL, ALL_NODES, lifetime.to_vec()),
            2 => (own, ALL_NODES, [&[137, 0, 0, 0, 0, 0, 0, 0][..], &[0xfe; 32]].concat()),
            3 => {
                let (target, mac) = (GATEWAY_LINK_LOCAL, self.mac);
                let claim =
                    Advertisement { target, mac, role: Role::Router, occasion: Occasion::Asked };
                (own, ALL_NODES, claim.emit())
            }
            4 => {
                let chosen =
                    Ipv6Addr::from_bits(0xfe80 << 112 | 0xabcd_0000_0000 | u128::from(nth));
                let probe = solicitation(chosen, self.mac)[..24].to_vec();
                (Ipv6Addr::UNSPECIFIED, solicited_node(chosen), probe)
            }
            _ => {
                // As a DHCPv6 server.
                let ends = ((own, 547).into(), (ALL_NODES, 546).into());
                return ethernet(self.mac, group, 0x86dd, &udp(ends.0, ends.1, &[7, 0, 0, 1]));
            }
        };
        ethernet(self.mac, group, 0x86dd, &icmp6(from, to, 255, &message))
    }

    /// Headers of IPv6 with chance behind them: extension headers, fragments, options.
    fn garbage6(&self, nth: u32) -> Vec<u8> {
        let mut state = nth.wrapping_mul(2_654_435_761);
        let mut random = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        let bytes: Vec<u8> = (0..8 + nth % 1200).map(|_| random()).collect();
        let protocol = [0, 43, 44, 51, 60, 135, 58, 6][nth as usize % 8];
        let to = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
        let packet = ip(self.mac.link_local().into(), to.into(), protocol, &bytes);
        ethernet(self.mac, self.gateway_mac, 0x86dd, &packet)
    }
}
