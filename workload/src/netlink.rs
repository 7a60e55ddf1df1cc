//! The few messages of rtnetlink that configure one interface (rtnetlink(7)), written by hand.
//!
//! Every request asks for an acknowledgement and waits for it. All of them are idempotent: what is
//! already there is replaced by the same.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netdevice, recv, send,
    socket_with,
};

/// An interface's number in its network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Index(u32);

/// The loopback, always the first interface of a network namespace.
pub(crate) const LOOPBACK: Index = Index(1);

/// A netlink socket in the network namespace in which it was opened.
pub(crate) struct Socket(OwnedFd);

impl Socket {
    pub(crate) fn open() -> io::Result<Self> {
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            // NETLINK_ROUTE is protocol 0.
            None,
        )?;
        Ok(Self(socket))
    }

    /// The number of an interface, if it exists.
    pub(crate) fn index_of(&self, interface: &str) -> io::Result<Option<Index>> {
        match netdevice::name_to_index(&self.0, interface) {
            Ok(index) => Ok(Some(Index(index))),
            Err(rustix::io::Errno::NODEV) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// How many descriptors hold a tap of several queues open, whether they are used or not; `None` of another interface,
    /// and before Linux 4.17.
    pub(crate) fn open_queues(&self, interface: Index) -> io::Result<Option<u32>> {
        let request = Request::new(libc::RTM_GETLINK, 0).payload(&link(interface, 0, 0));
        send(&self.0, &request.without_acknowledgement().finish(), SendFlags::empty())?;
        let mut answer = vec![0_u8; 32 << 10];
        let (length, _) = recv(&self.0, &mut answer, RecvFlags::empty())?;
        let answer = &answer[..length];
        if answer.get(4..6) != Some(&libc::RTM_NEWLINK.to_ne_bytes()[..]) {
            // It answers with an error, and never with success.
            acknowledged(answer)?;
        }
        Ok(queues_in(answer.get(HEADER + LINK..).unwrap_or_default()))
    }

    /// Sets the interface up.
    pub(crate) fn set_up(&self, interface: Index) -> io::Result<()> {
        let up = libc::IFF_UP.cast_unsigned();
        self.transact(Request::new(libc::RTM_NEWLINK, 0).payload(&link(interface, up, up)))
    }

    /// Sets the interface's Ethernet address and MTU.
    pub(crate) fn set_link(&self, interface: Index, mac: [u8; 6], mtu: u16) -> io::Result<()> {
        self.transact(
            Request::new(libc::RTM_NEWLINK, 0)
                .payload(&link(interface, 0, 0))
                .attribute(libc::IFLA_ADDRESS, &mac)
                .attribute(libc::IFLA_MTU, &u32::from(mtu).to_ne_bytes()),
        )
    }

    /// Gives the interface an address, and takes every other one away: what an earlier attachment left
    /// would be the source of packets that nobody lets pass.
    pub(crate) fn set_only_address(
        &self,
        interface: Index,
        address: Ipv4Addr,
        prefix_len: u8,
    ) -> io::Result<()> {
        self.remove_other_addresses(interface, address.into(), prefix_len)?;
        let host_bits = u32::MAX.checked_shr(prefix_len.into()).unwrap_or(0);
        let broadcast = Ipv4Addr::from_bits(address.to_bits() | host_bits);
        self.transact(
            Request::new(libc::RTM_NEWADDR, REPLACE)
                .payload(&ifaddrmsg(interface, AF_INET, prefix_len, 0))
                .attribute(libc::IFA_LOCAL, &address.octets())
                .attribute(libc::IFA_ADDRESS, &address.octets())
                .attribute(libc::IFA_BROADCAST, &broadcast.octets()),
        )
    }

    /// The same for IPv6, with a /64; the link-local address stays. Nobody is asked whether the address is taken.
    pub(crate) fn set_only_address6(&self, interface: Index, address: Ipv6Addr) -> io::Result<()> {
        const NO_DAD: u8 = 2;
        self.remove_other_addresses(interface, address.into(), 64)?;
        self.transact(
            Request::new(libc::RTM_NEWADDR, REPLACE)
                .payload(&ifaddrmsg(interface, AF_INET6, 64, NO_DAD))
                .attribute(libc::IFA_LOCAL, &address.octets())
                .attribute(libc::IFA_ADDRESS, &address.octets()),
        )
    }

    fn remove_other_addresses(
        &self,
        interface: Index,
        address: IpAddr,
        prefix_len: u8,
    ) -> io::Result<()> {
        for (other, len) in self.addresses(interface, family(address))? {
            let is_link_local = matches!(other, IpAddr::V6(ip) if ip.is_unicast_link_local());
            if (other, len) != (address, prefix_len) && !is_link_local {
                self.transact(
                    Request::new(libc::RTM_DELADDR, 0)
                        .payload(&ifaddrmsg(interface, family(other), len, 0))
                        .attribute(libc::IFA_LOCAL, &octets(other)),
                )?;
            }
        }
        Ok(())
    }

    /// The interface's addresses of a family with their prefix lengths.
    fn addresses(&self, interface: Index, family: u8) -> io::Result<Vec<(IpAddr, u8)>> {
        let request = Request::new(libc::RTM_GETADDR, libc::NLM_F_DUMP as u16)
            .payload(&[family, 0, 0, 0, 0, 0, 0, 0]);
        send(&self.0, &request.without_acknowledgement().finish(), SendFlags::empty())?;
        let mut found = Vec::new();
        let mut answer = vec![0_u8; 32 << 10];
        loop {
            let (length, _) = recv(&self.0, &mut answer, RecvFlags::empty())?;
            if read_addresses(&answer[..length], interface, &mut found) == Dump::Done {
                return Ok(found);
            }
        }
    }

    /// Makes the gateway everything else's next hop, in its family.
    pub(crate) fn set_default_route(&self, interface: Index, gateway: IpAddr) -> io::Result<()> {
        let to_everywhere = 0;
        let mut rtmsg = vec![family(gateway), to_everywhere, 0, 0];
        rtmsg.extend([
            libc::RT_TABLE_MAIN,
            libc::RTPROT_BOOT,
            libc::RT_SCOPE_UNIVERSE,
            libc::RTN_UNICAST,
        ]);
        rtmsg.extend(0_u32.to_ne_bytes());
        self.transact(
            Request::new(libc::RTM_NEWROUTE, REPLACE)
                .payload(&rtmsg)
                .attribute(libc::RTA_GATEWAY, &octets(gateway))
                .attribute(libc::RTA_OIF, &interface.0.to_ne_bytes()),
        )
    }

    fn transact(&self, request: Request) -> io::Result<()> {
        send(&self.0, &request.finish(), SendFlags::empty())?;
        let mut answer = [0_u8; 4096];
        let (length, _) = recv(&self.0, &mut answer, RecvFlags::empty())?;
        acknowledged(&answer[..length])
    }
}

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const REPLACE: u16 = (libc::NLM_F_CREATE | libc::NLM_F_REPLACE) as u16;
const HEADER: usize = 16;
/// A `struct ifinfomsg`.
const LINK: usize = 16;
/// Of linux/if_link.h, as kind `tun` has them.
const IFLA_TUN_NUM_QUEUES: u16 = 8;
const IFLA_TUN_NUM_DISABLED_QUEUES: u16 = 9;

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { AF_INET } else { AF_INET6 }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// A `struct ifaddrmsg`.
fn ifaddrmsg(interface: Index, family: u8, prefix_len: u8, flags: u8) -> Vec<u8> {
    let mut bytes = vec![family, prefix_len, flags, libc::RT_SCOPE_UNIVERSE];
    bytes.extend(interface.0.to_ne_bytes());
    bytes
}

/// A `struct ifinfomsg`.
fn link(interface: Index, flags: u32, change: u32) -> Vec<u8> {
    let any_family_and_type = 0_u32;
    [any_family_and_type, interface.0, flags, change]
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .collect()
}

/// One message: `struct nlmsghdr`, a payload, attributes.
struct Request(Vec<u8>);

impl Request {
    fn new(kind: u16, flags: u16) -> Self {
        let flags = flags | (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.resize(HEADER, 0);
        Self(bytes)
    }

    /// A dump ends with a message of its own.
    fn without_acknowledgement(mut self) -> Self {
        let flags = u16::from_ne_bytes([self.0[6], self.0[7]]) & !(libc::NLM_F_ACK as u16);
        self.0[6..8].copy_from_slice(&flags.to_ne_bytes());
        self
    }

    fn payload(mut self, payload: &[u8]) -> Self {
        self.0.extend(payload);
        self
    }

    fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(4 + value.len()).expect("an attribute is a few bytes");
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).expect("a request is a few bytes");
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

/// Whether a dump goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dump {
    GoesOn,
    Done,
}

/// Reads one datagram of an RTM_GETADDR dump.
fn read_addresses(datagram: &[u8], interface: Index, found: &mut Vec<(IpAddr, u8)>) -> Dump {
    let mut rest = datagram;
    while let Some(header) = rest.first_chunk::<HEADER>() {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        if kind != libc::RTM_NEWADDR || length < HEADER + 8 || length > rest.len() {
            // NLMSG_DONE, an error, or nonsense: nothing more comes either way.
            return Dump::Done;
        }
        let (message, next) = rest.split_at(length.next_multiple_of(4).min(rest.len()));
        let body = &message[HEADER..length];
        if body[4..8] == interface.0.to_ne_bytes()
            && let Some(address) = address_in(&body[8..], libc::IFA_LOCAL)
                .or_else(|| address_in(&body[8..], libc::IFA_ADDRESS))
        {
            found.push((address, body[1]));
        }
        rest = next;
    }
    Dump::GoesOn
}

/// The open queues of a tap, in the attributes of its link.
fn queues_in(attributes: &[u8]) -> Option<u32> {
    let tun = attribute(attribute(attributes, libc::IFLA_LINKINFO)?, libc::IFLA_INFO_DATA)?;
    let number = |kind| attribute(tun, kind)?.try_into().ok().map(u32::from_ne_bytes);
    Some(number(IFLA_TUN_NUM_QUEUES)? + number(IFLA_TUN_NUM_DISABLED_QUEUES)?)
}

/// The attribute of that kind, as an address.
fn address_in(attributes: &[u8], wanted: u16) -> Option<IpAddr> {
    let value = attribute(attributes, wanted)?;
    match value.len() {
        4 => Some(Ipv4Addr::from_octets(value.try_into().ok()?).into()),
        _ => Some(Ipv6Addr::from_octets(value.try_into().ok()?).into()),
    }
}

/// The value of the attribute of that kind.
fn attribute(attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    let mut rest = attributes;
    while let Some(header) = rest.first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        if u16::from_ne_bytes([header[2], header[3]]) == wanted {
            return rest.get(4..length);
        }
        rest = rest.get(length.max(4).next_multiple_of(4)..)?;
    }
    None
}

/// Reads an acknowledgement: NLMSG_ERROR with a negative errno, zero for success.
fn acknowledged(answer: &[u8]) -> io::Result<()> {
    let word = |at: usize| answer.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    let kind = word(4).map(|bytes| u32::from_ne_bytes(bytes) & 0xffff);
    let error = word(HEADER).map(i32::from_ne_bytes);
    match (kind, error) {
        (Some(kind), Some(0)) if kind == libc::NLMSG_ERROR as u32 => Ok(()),
        (Some(kind), Some(error)) if kind == libc::NLMSG_ERROR as u32 => {
            Err(io::Error::from_raw_os_error(-error))
        }
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "netlink answered something else")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_the_length_counts_the_padding() {
        let bytes = Request::new(libc::RTM_NEWLINK, 0)
            .payload(&link(Index(7), 0, 0))
            .attribute(libc::IFLA_ADDRESS, &[2, 0, 0, 0, 0, 1])
            .finish();
        assert_eq!(bytes.len(), HEADER + 16 + 12);
        assert_eq!(bytes[..4], 44_u32.to_ne_bytes());
        assert_eq!(bytes[HEADER + 16..HEADER + 18], 10_u16.to_ne_bytes());
    }

    #[test]
    fn a_refusal_carries_the_kernels_reason() {
        let mut refusal = Request::new(libc::NLMSG_ERROR as u16, 0).finish();
        refusal.extend((-libc::EPERM).to_ne_bytes());
        assert_eq!(acknowledged(&refusal).unwrap_err().raw_os_error(), Some(libc::EPERM));
    }

    #[test]
    fn the_queues_of_a_tap_lie_two_attributes_deep() {
        let nested = |kind, inner: Request| {
            Request(Vec::new()).attribute(libc::IFLA_MTU, &[0; 4]).attribute(kind, &inner.0)
        };
        let number = |queues: u32, disabled: u32| {
            Request(Vec::new())
                .attribute(IFLA_TUN_NUM_QUEUES, &queues.to_ne_bytes())
                .attribute(IFLA_TUN_NUM_DISABLED_QUEUES, &disabled.to_ne_bytes())
        };
        let link = nested(libc::IFLA_LINKINFO, nested(libc::IFLA_INFO_DATA, number(3, 1)));
        assert_eq!(queues_in(&link.0), Some(4));
        let one = nested(libc::IFLA_LINKINFO, nested(libc::IFLA_INFO_DATA, Request(Vec::new())));
        assert_eq!(queues_in(&one.0), None, "a tap of one queue says nothing of them");
        for len in 0..link.0.len() {
            assert_eq!(queues_in(&link.0[..len]), None, "{len}");
        }
    }

    #[test]
    fn a_short_answer_is_an_error() {
        assert!(acknowledged(&[0; 10]).is_err());
    }
}
