//! Asks the host's routing table where a packet would go (`RTM_GETROUTE`, rtnetlink(7)); needs no
//! privilege. The kernel is asked for each new destination, so the answer is never stale.

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};

use crate::host::Route;

const NLMSG_ERROR: u16 = 2;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const NLM_F_REQUEST: u16 = 1;
const RTA_DST: u16 = 1;
const RTN_UNICAST: u8 = 1;
const RTN_LOCAL: u8 = 2;
const RTN_BROADCAST: u8 = 3;
const RTN_ANYCAST: u8 = 4;
const RTN_MULTICAST: u8 = 5;
/// nlmsghdr, rtmsg, and the header of one attribute.
const REQUEST_LEN: usize = 16 + 12 + 4;

/// A netlink socket for route look-ups.
#[derive(Debug)]
pub struct RouteQuery {
    socket: OwnedFd,
    sequence: u32,
}

impl RouteQuery {
    /// Opens the socket.
    pub fn new() -> io::Result<Self> {
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            // NETLINK_ROUTE is protocol 0, the default.
            None,
        )?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Where the host would send a packet to `to`. A question that fails is answered `Unreachable`.
    pub fn ask(&mut self, to: IpAddr) -> Route {
        self.sequence = self.sequence.wrapping_add(1);
        let request = request(to, self.sequence);
        if send(&self.socket, &request, SendFlags::empty()).is_err() {
            return Route::Unreachable;
        }
        let mut buffer = [0; 1024];
        // The kernel answers a look-up before send returns, so this never waits; an answer to an earlier
        // question that was not read is passed over.
        while let Ok((_, len)) = recv(&self.socket, &mut buffer, RecvFlags::DONTWAIT) {
            if let Some(route) = answer(&buffer[..len.min(1024)], self.sequence) {
                return route;
            }
        }
        Route::Unreachable
    }
}

fn request(to: IpAddr, sequence: u32) -> Vec<u8> {
    let (family, address) = match to {
        IpAddr::V4(to) => (libc::AF_INET, to.octets().to_vec()),
        IpAddr::V6(to) => (libc::AF_INET6, to.octets().to_vec()),
    };
    let len = |len: usize| u16::try_from(len).expect("an address is short");
    let mut bytes = vec![0; REQUEST_LEN];
    bytes[0..4].copy_from_slice(&u32::from(len(REQUEST_LEN + address.len())).to_ne_bytes());
    bytes[4..6].copy_from_slice(&RTM_GETROUTE.to_ne_bytes());
    bytes[6..8].copy_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
    bytes[16] = u8::try_from(family).expect("address families are small");
    // All bits of the destination.
    bytes[17] = u8::try_from(8 * address.len()).expect("at most 128");
    bytes[28..30].copy_from_slice(&len(4 + address.len()).to_ne_bytes());
    bytes[30..32].copy_from_slice(&RTA_DST.to_ne_bytes());
    bytes.extend_from_slice(&address);
    bytes
}

fn answer(message: &[u8], sequence: u32) -> Option<Route> {
    let kind = u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?);
    let answered = u32::from_ne_bytes(message.get(8..12)?.try_into().ok()?);
    if answered != sequence {
        return None;
    }
    match kind {
        RTM_NEWROUTE => Some(match *message.get(23)? {
            RTN_UNICAST => Route::Unicast,
            RTN_LOCAL => Route::Local,
            RTN_BROADCAST | RTN_ANYCAST | RTN_MULTICAST => Route::Broadcast,
            _ => Route::Unreachable,
        }),
        NLMSG_ERROR => Some(Route::Unreachable),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_own_addresses_are_local() {
        let mut query = RouteQuery::new().unwrap();
        for local in ["127.0.0.1", "127.9.9.9", "::1"] {
            assert_eq!(query.ask(local.parse().unwrap()), Route::Local, "{local}");
        }
    }
}
