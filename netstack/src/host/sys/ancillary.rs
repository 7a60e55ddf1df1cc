//! Messages with control data: what a datagram socket says and is told besides the bytes.
//!
//! The kernel's structures are read and written as bytes (cmsg(3), ip(7), udp(7)), so that only the two
//! system calls are unsafe.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::RawFd;

use crate::host::Peer;
use crate::wire::icmp::IcmpError;

/// A `sockaddr_in6`, the larger of the two.
const ADDRESS_LEN: usize = 28;
/// Room for all control messages that were asked for, several times over.
const CONTROL_LEN: usize = 256;
/// A `cmsghdr`: length, level, type.
const HEADER_LEN: usize = 16;
/// A `sock_extended_err`, which the address of the offender follows.
const EXTENDED_ERROR_LEN: usize = 16;

/// A received message, but for its bytes.
pub(super) struct Message {
    pub(super) len: usize,
    address: [u8; ADDRESS_LEN],
    control: [u8; CONTROL_LEN],
    control_len: usize,
}

/// A control message of interest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Control {
    /// Bytes of each datagram of several.
    SegmentSize(usize),
    /// The address of ours that the datagram was sent to.
    Local(IpAddr),
    /// What came back for a datagram of ours, and who sent that.
    Error { error: IcmpError, from: Option<IpAddr> },
}

impl Message {
    /// Who sent it; on the error queue, where the datagram went.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        parse_address(&self.address)
    }

    /// Its control messages.
    pub(super) fn controls(&self) -> impl Iterator<Item = Control> {
        let mut rest = &self.control[..self.control_len];
        std::iter::from_fn(move || {
            loop {
                let len = usize::from_ne_bytes(*rest.first_chunk()?);
                let message = rest.get(..len).filter(|message| message.len() >= HEADER_LEN)?;
                rest = rest.get(len.next_multiple_of(size_of::<usize>())..).unwrap_or(&[]);
                let level = int(message, 8)?;
                let kind = int(message, 12)?;
                if let Some(control) = parse_control(level, kind, &message[HEADER_LEN..]) {
                    return Some(control);
                }
            }
        })
    }
}

fn int(bytes: &[u8], at: usize) -> Option<i32> {
    Some(i32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn parse_control(level: i32, kind: i32, data: &[u8]) -> Option<Control> {
    match (level, kind) {
        (libc::SOL_UDP, libc::UDP_GRO) => {
            Some(Control::SegmentSize(usize::try_from(int(data, 0)?).ok()?))
        }
        // in_pktinfo: interface, the address to answer from, the address that was asked.
        (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
            Some(Control::Local(Ipv4Addr::from_octets(*data.get(4..)?.first_chunk()?).into()))
        }
        // in6_pktinfo: address, interface.
        (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
            Some(Control::Local(Ipv6Addr::from_octets(*data.first_chunk()?).into()))
        }
        (libc::IPPROTO_IP, libc::IP_RECVERR) => parse_error(data, 0),
        // The host's own word is about IPv6, whose header is twenty bytes longer.
        (libc::IPPROTO_IPV6, libc::IPV6_RECVERR) => parse_error(data, 20),
        _ => None,
    }
}

/// Reads a `sock_extended_err`: errno, origin, type, code, padding, info, data. By `longer` bytes the header of
/// its family is longer than IPv4's.
fn parse_error(data: &[u8], longer: u16) -> Option<Control> {
    let &[_, _, _, _, origin, kind, code, ..] = data else { return None };
    let info = u32::from_ne_bytes(*data.get(8..)?.first_chunk()?);
    let mtu = u16::try_from(info).unwrap_or(u16::MAX);
    let error = match origin {
        libc::SO_EE_ORIGIN_ICMP => IcmpError::from_icmp(kind, code, mtu)?,
        libc::SO_EE_ORIGIN_ICMP6 => IcmpError::from_icmp6(kind, code, mtu)?,
        libc::SO_EE_ORIGIN_LOCAL if int(data, 0)? == libc::EMSGSIZE => {
            IcmpError::FragmentationNeeded(mtu.saturating_sub(longer))
        }
        _ => return None,
    };
    let from = data.get(EXTENDED_ERROR_LEN..).and_then(parse_address);
    Some(Control::Error { error, from: from.map(|address| address.ip()) })
}

/// Reads a `sockaddr`.
fn parse_address(bytes: &[u8]) -> Option<SocketAddr> {
    let family = u16::from_ne_bytes(*bytes.first_chunk()?);
    let port = u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?);
    match i32::from(family) {
        libc::AF_INET => {
            let ip = Ipv4Addr::from_octets(*bytes.get(4..)?.first_chunk()?);
            Some(SocketAddr::from((ip, port)))
        }
        libc::AF_INET6 => {
            let ip = Ipv6Addr::from_octets(*bytes.get(8..)?.first_chunk()?);
            let scope = u32::from_ne_bytes(*bytes.get(24..)?.first_chunk()?);
            Some(std::net::SocketAddrV6::new(ip, port, 0, scope).into())
        }
        _ => None,
    }
}

/// Writes a `sockaddr`; answers its length.
fn emit_address(address: SocketAddr, into: &mut [u8; ADDRESS_LEN]) -> usize {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let family = u16::try_from(family).expect("address families are small");
    into[..2].copy_from_slice(&family.to_ne_bytes());
    into[2..4].copy_from_slice(&address.port().to_be_bytes());
    match address {
        SocketAddr::V4(address) => {
            into[4..8].copy_from_slice(&address.ip().octets());
            16
        }
        SocketAddr::V6(address) => {
            into[8..24].copy_from_slice(&address.ip().octets());
            into[24..28].copy_from_slice(&address.scope_id().to_ne_bytes());
            ADDRESS_LEN
        }
    }
}

/// Control messages about to be sent.
struct ControlWriter {
    bytes: [u8; CONTROL_LEN],
    len: usize,
}

impl ControlWriter {
    fn push(&mut self, level: i32, kind: i32, data: &[u8]) {
        let message = &mut self.bytes[self.len..];
        let len = HEADER_LEN + data.len();
        message[..8].copy_from_slice(&len.to_ne_bytes());
        message[8..12].copy_from_slice(&level.to_ne_bytes());
        message[12..16].copy_from_slice(&kind.to_ne_bytes());
        message[16..len].copy_from_slice(data);
        self.len += len.next_multiple_of(size_of::<usize>());
    }
}

/// Receives one message.
pub(super) fn receive_message(fd: RawFd, buffer: &mut [u8], flags: i32) -> io::Result<Message> {
    let mut message =
        Message { len: 0, address: [0; ADDRESS_LEN], control: [0; CONTROL_LEN], control_len: 0 };
    let mut piece = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut header = empty_header();
    header.msg_iov = &raw mut piece;
    header.msg_iovlen = 1;
    header.msg_name = message.address.as_mut_ptr().cast();
    header.msg_namelen = 28;
    header.msg_control = message.control.as_mut_ptr().cast();
    header.msg_controllen = CONTROL_LEN;
    // SAFETY: every pointer names as many writable bytes as its length says, for the whole call.
    #[expect(unsafe_code, reason = "rustix does not know these control messages")]
    let result = unsafe { libc::recvmsg(fd, &raw mut header, flags) };
    message.len = usize::try_from(result).map_err(|_| io::Error::last_os_error())?;
    message.control_len = header.msg_controllen.min(CONTROL_LEN);
    Ok(message)
}

/// Sends one message, as datagrams of `segment_size` bytes where that is given.
pub(super) fn send_message(
    fd: RawFd,
    bytes: &[u8],
    segment_size: Option<u16>,
    route: Option<Peer>,
) -> io::Result<()> {
    let mut address = [0; ADDRESS_LEN];
    let mut control = ControlWriter { bytes: [0; CONTROL_LEN], len: 0 };
    if let Some(size) = segment_size {
        control.push(libc::SOL_UDP, libc::UDP_SEGMENT, &size.to_ne_bytes());
    }
    match route.and_then(|route| route.local) {
        Some(IpAddr::V4(local)) => {
            let mut info = [0; 12];
            info[4..8].copy_from_slice(&local.octets());
            control.push(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
        }
        Some(IpAddr::V6(local)) => {
            let mut info = [0; 20];
            info[..16].copy_from_slice(&local.octets());
            control.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
        }
        None => {}
    }
    let mut piece =
        libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut header = empty_header();
    header.msg_iov = &raw mut piece;
    header.msg_iovlen = 1;
    if let Some(route) = route {
        let len = emit_address(route.address, &mut address);
        header.msg_name = address.as_mut_ptr().cast();
        header.msg_namelen = u32::try_from(len).expect("addresses are short");
    }
    if control.len > 0 {
        header.msg_control = control.bytes.as_mut_ptr().cast();
        header.msg_controllen = control.len;
    }
    // SAFETY: every pointer names as many readable bytes as its length says, and sendmsg writes to none.
    #[expect(unsafe_code, reason = "rustix does not know these control messages")]
    let result = unsafe { libc::sendmsg(fd, &raw const header, libc::MSG_NOSIGNAL) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sets an integer option of a socket.
pub(super) fn set_option(fd: RawFd, level: i32, option: i32, value: i32) -> io::Result<()> {
    let size = libc::socklen_t::try_from(size_of_val(&value)).expect("four bytes");
    // SAFETY: the pointer names `size` readable bytes for the whole call.
    #[expect(unsafe_code, reason = "rustix does not know these options")]
    let result = unsafe { libc::setsockopt(fd, level, option, (&raw const value).cast(), size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn empty_header() -> libc::msghdr {
    // SAFETY: a msghdr of zeros is valid: null pointers with lengths of zero.
    #[expect(unsafe_code, reason = "the structure has padding that differs between C libraries")]
    unsafe {
        std::mem::zeroed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(parts: &[(i32, i32, &[u8])]) -> Message {
        let mut writer = ControlWriter { bytes: [0; CONTROL_LEN], len: 0 };
        for (level, kind, data) in parts {
            writer.push(*level, *kind, data);
        }
        Message {
            len: 0,
            address: [0; ADDRESS_LEN],
            control: writer.bytes,
            control_len: writer.len,
        }
    }

    #[test]
    fn addresses_read_what_they_write() {
        for text in ["192.0.2.1:53", "[2001:db8::1]:53", "[fe80::1%3]:9"] {
            let address: SocketAddr = text.parse().unwrap();
            let mut bytes = [0; ADDRESS_LEN];
            emit_address(address, &mut bytes);
            assert_eq!(parse_address(&bytes), Some(address));
        }
        assert_eq!(parse_address(&[0; ADDRESS_LEN]), None);
    }

    #[test]
    fn unknown_control_messages_are_passed_over() {
        let info = [1, 0, 0, 0, 192, 0, 2, 1, 192, 0, 2, 255];
        let message = message(&[
            (libc::SOL_SOCKET, 99, &[1]),
            (libc::SOL_UDP, libc::UDP_GRO, &1200i32.to_ne_bytes()),
            (libc::IPPROTO_IP, libc::IP_PKTINFO, &info),
        ]);
        let read: Vec<_> = message.controls().collect();
        let local = Control::Local(Ipv4Addr::new(192, 0, 2, 1).into());
        assert_eq!(read, [Control::SegmentSize(1200), local]);
    }

    #[test]
    fn an_error_says_what_it_is_and_who_sent_it() {
        let mut data = [0; EXTENDED_ERROR_LEN + 16];
        data[4..7].copy_from_slice(&[libc::SO_EE_ORIGIN_ICMP, 11, 0]);
        let mut offender = [0; ADDRESS_LEN];
        emit_address("203.0.113.7:0".parse().unwrap(), &mut offender);
        data[EXTENDED_ERROR_LEN..].copy_from_slice(&offender[..16]);
        let message = message(&[(libc::IPPROTO_IP, libc::IP_RECVERR, &data)]);
        let from = Some(Ipv4Addr::new(203, 0, 113, 7).into());
        assert_eq!(
            message.controls().collect::<Vec<_>>(),
            [Control::Error { error: IcmpError::TtlExceeded, from }]
        );
    }
}
