//! The sockets of published ports, which control binds and the datapath serves.
//!
//! A TCP port is first *reserved*: bound, but not listening, so that a client is refused rather than left
//! waiting while there is no workload. It *listens* once its workload is there, and the datapath is given
//! a copy. Control keeps its own, so that a new datapath can be given it again with every client that
//! queued meanwhile; a control that adopts a datapath takes a copy back from it.
//!
//! A UDP socket takes datagrams as soon as it is bound, and then nobody is told that they are lost. So it
//! is bound only while its workload is there; before, what is looked at is whether it could be.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard};

use lichen_api::Transport;
use lichen_netstack::ids::ForwardId;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use crate::state::PortRow;

/// Clients that may wait to be accepted; the kernel caps it at net.core.somaxconn.
const BACKLOG: i32 = 4096;

/// Why a port cannot be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Below the first unprivileged port.
    #[error(
        "port {port} is privileged: here only root may use ports below {first}; choose one from {first}, \
         or let everybody use it with: sudo sysctl net.ipv4.ip_unprivileged_port_start={port}"
    )]
    Privileged {
        /// The port.
        port: u16,
        /// What the sysctl says.
        first: u16,
    },
    /// Somebody else listens there.
    #[error(
        "{address}/{protocol} is in use by another program; find it with: ss -l{option}np \
         'sport = :{port}', or choose another port",
        port = .address.port(),
        option = if *.protocol == Transport::Tcp { 't' } else { 'u' }
    )]
    InUse {
        /// Where.
        address: SocketAddr,
        /// Which transport.
        protocol: Transport,
    },
    /// Not an address of this host.
    #[error("this host has no address {0}; see: ip address")]
    NoSuchAddress(std::net::IpAddr),
    /// Too many descriptors.
    #[error(
        "the daemon has no file descriptor left for {0}; raise its limit (ulimit -n) or publish fewer ports"
    )]
    NoDescriptor(SocketAddr),
    /// Anything else.
    #[error("cannot bind {address}: {source}")]
    Io {
        /// Where.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A socket that is bound and does not listen.
#[derive(Debug)]
pub struct Reserved {
    socket: OwnedFd,
    address: SocketAddr,
    protocol: Transport,
}

impl Reserved {
    /// Where it is bound; never port 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Which transport.
    pub fn protocol(&self) -> Transport {
        self.protocol
    }
}

#[derive(Debug)]
enum Held {
    /// Bound only.
    Reserved(OwnedFd),
    /// The datapath has, or had, a copy.
    Listening(OwnedFd),
}

/// All sockets that control holds.
#[derive(Debug, Default)]
pub struct Listeners(Mutex<BTreeMap<ForwardId, Held>>);

impl Listeners {
    /// Keeps a reserved socket under its number. A port that is held already keeps the socket it has.
    pub fn keep(&self, id: ForwardId, reserved: Reserved) {
        if reserved.protocol == Transport::Tcp {
            self.lock().entry(id).or_insert(Held::Reserved(reserved.socket));
        }
    }

    /// Whether a socket is held for a port.
    pub fn has(&self, id: ForwardId) -> bool {
        self.lock().contains_key(&id)
    }

    /// Keeps a listening socket that an adopted datapath had.
    pub fn adopt(&self, id: ForwardId, listener: OwnedFd) {
        self.lock().entry(id).or_insert(Held::Listening(listener));
    }

    /// A copy of the socket, taking clients; bound anew when none is held.
    pub fn listening(
        &self,
        id: ForwardId,
        address: SocketAddr,
        protocol: Transport,
    ) -> Result<OwnedFd, BindError> {
        let mut held = self.lock();
        let socket = match held.remove(&id) {
            Some(Held::Listening(socket)) => socket,
            Some(Held::Reserved(socket)) => listen(address, socket)?,
            None => {
                let reserved = reserve(address, protocol)?.socket;
                match protocol {
                    Transport::Tcp => listen(address, reserved)?,
                    Transport::Udp => reserved,
                }
            }
        };
        let copy = socket.try_clone().map_err(|source| BindError::Io { address, source })?;
        held.insert(id, Held::Listening(socket));
        Ok(copy)
    }

    /// Lets go of every socket without a row, and makes sure that every row that is not `active` takes no
    /// clients: a TCP port is reserved, a UDP port could be. Answers how that went, for those rows.
    pub fn settle(
        &self,
        rows: &[PortRow],
        active: &BTreeSet<ForwardId>,
    ) -> Vec<(ForwardId, Result<(), BindError>)> {
        let mut held = self.lock();
        held.retain(|id, _| rows.iter().any(|row| row.id == *id));
        let mut results = Vec::new();
        for row in rows.iter().filter(|row| !active.contains(&row.id)) {
            let is_reserved = matches!(held.get(&row.id), Some(Held::Reserved(_)));
            let result = if is_reserved {
                Ok(())
            } else {
                // The listening one is closed first, else it would be in its own way.
                held.remove(&row.id);
                reserve(row.host, row.protocol).map(|reserved| {
                    if reserved.protocol == Transport::Tcp {
                        held.insert(row.id, Held::Reserved(reserved.socket));
                    }
                })
            };
            results.push((row.id, result));
        }
        results
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ForwardId, Held>> {
        self.0.lock().expect("nobody panics while holding it")
    }
}

/// Binds without listening; port 0 is one that is free.
pub fn reserve(address: SocketAddr, protocol: Transport) -> Result<Reserved, BindError> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let kind = match protocol {
        Transport::Tcp => SocketType::STREAM,
        Transport::Udp => SocketType::DGRAM,
    };
    let failed = |error| explain(address, protocol, error);
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, kind, flags, None).map_err(failed)?;
    if protocol == Transport::Tcp {
        // Without it, connections of an earlier life in TIME-WAIT would keep the port for a minute. With
        // it, two UDP sockets could share a port.
        sockopt::set_socket_reuseaddr(&socket, true).map_err(failed)?;
    }
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true).map_err(failed)?;
    }
    rustix::net::bind(&socket, &address).map_err(failed)?;
    let bound = rustix::net::getsockname(&socket).map_err(failed)?;
    let address = SocketAddr::try_from(bound).map_err(failed)?;
    Ok(Reserved { socket, address, protocol })
}

fn listen(address: SocketAddr, socket: OwnedFd) -> Result<OwnedFd, BindError> {
    rustix::net::listen(&socket, BACKLOG)
        .map_err(|error| explain(address, Transport::Tcp, error))?;
    Ok(socket)
}

fn explain(address: SocketAddr, protocol: Transport, error: Errno) -> BindError {
    match error {
        Errno::ACCESS => {
            BindError::Privileged { port: address.port(), first: first_unprivileged_port() }
        }
        Errno::ADDRINUSE => BindError::InUse { address, protocol },
        Errno::ADDRNOTAVAIL => BindError::NoSuchAddress(address.ip()),
        Errno::MFILE | Errno::NFILE => BindError::NoDescriptor(address),
        other => BindError::Io { address, source: other.into() },
    }
}

fn first_unprivileged_port() -> u16 {
    fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(1024)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};

    use lichen_api::Source;

    use super::*;

    fn free_port() -> SocketAddr {
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
    }

    fn row(id: u32, host: SocketAddr) -> PortRow {
        PortRow {
            id: ForwardId(id),
            host,
            target: "web".into(),
            target_port: 80,
            protocol: Transport::Tcp,
            source: Source::Client,
            workload: None,
        }
    }

    #[test]
    fn a_reserved_port_refuses_and_a_listening_one_queues() {
        let (id, address) = (ForwardId(1), free_port());
        let listeners = Listeners::default();
        listeners.keep(id, reserve(address, Transport::Tcp).unwrap());
        assert!(TcpStream::connect(address).is_err());
        let copy = listeners.listening(id, address, Transport::Tcp).unwrap();
        assert!(TcpStream::connect(address).is_ok());
        drop(copy);
        // The datapath's copy is gone, ours still takes clients.
        assert!(TcpStream::connect(address).is_ok());
        let settled = listeners.settle(&[row(1, address)], &BTreeSet::new());
        assert!(settled[0].1.is_ok(), "{settled:?}");
        assert!(TcpStream::connect(address).is_err());
    }

    #[test]
    fn a_port_in_use_is_explained_and_nothing_stays_bound() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let free = free_port();
        let addresses = [free, taken.local_addr().unwrap()];
        let reserved = addresses.map(|address| reserve(address, Transport::Tcp));
        let error = reserved.into_iter().collect::<Result<Vec<_>, _>>().unwrap_err();
        assert!(error.to_string().contains("in use by another program"), "{error}");
        TcpListener::bind(free).unwrap();
    }

    #[test]
    fn an_address_that_is_not_ours_is_explained() {
        let error = reserve("192.0.2.1:8080".parse().unwrap(), Transport::Tcp).unwrap_err();
        assert!(matches!(error, BindError::NoSuchAddress(_)), "{error}");
    }

    #[test]
    fn a_privileged_port_is_explained_with_the_sysctl() {
        let error =
            explain("127.0.0.1:80".parse().unwrap(), Transport::Tcp, Errno::ACCESS).to_string();
        assert!(error.contains("net.ipv4.ip_unprivileged_port_start=80"), "{error}");
    }

    #[test]
    fn a_udp_port_is_bound_only_while_it_is_active() {
        let (id, address) = (ForwardId(1), free_port());
        let row = PortRow { protocol: Transport::Udp, ..row(1, address) };
        let listeners = Listeners::default();
        listeners.keep(id, reserve(address, Transport::Udp).unwrap());
        let free = || UdpSocket::bind(address).is_ok();
        assert!(free());
        let copy = listeners.listening(id, address, Transport::Udp).unwrap();
        assert!(!free());
        let again = listeners.listening(id, address, Transport::Udp).unwrap();
        drop((copy, again));
        assert!(!free(), "ours is still there");
        assert!(listeners.settle(std::slice::from_ref(&row), &BTreeSet::new())[0].1.is_ok());
        assert!(free());
        let taken = UdpSocket::bind(address).unwrap();
        let settled = listeners.settle(&[row], &BTreeSet::new());
        let error = settled[0].1.as_ref().unwrap_err().to_string();
        assert!(error.contains("ss -lunp"), "{error}");
        drop(taken);
    }

    #[test]
    fn sockets_without_a_row_are_let_go() {
        let address = free_port();
        let listeners = Listeners::default();
        listeners.keep(ForwardId(1), reserve(address, Transport::Tcp).unwrap());
        listeners.settle(&[], &BTreeSet::new());
        assert!(listeners.lock().is_empty());
    }
}
