//! What all guests' ends of a port's TCP flows share: smoltcp's interface, and the sockets that wait for their next
//! flow.
//!
//! One set of sockets per flow, because smoltcp looks at every socket of a set for each packet; one `Interface` per
//! port. Its clock runs ten times faster than ours, which shortens its one second of minimal retransmission time-out
//! to what a link inside one machine deserves.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer};
use smoltcp::wire::{HardwareAddress, IpEndpoint, IpListenEndpoint};

use super::direct::Direct;
use super::ring_memory::RingMemory;
use super::tcp_device::Capabilities;
use super::tcp_endpoint::Endpoint;
use crate::time::Instant;

/// How much faster smoltcp's clock runs than ours: its least RTO of 1 s becomes 100 ms.
const CLOCK_SPEED: u64 = 10;
/// How long an acknowledgement waits for company: each one alone is a system call and a guest's wake-up.
const ACK_DELAY: Duration = Duration::from_millis(2);
/// Closed sockets that wait for their next flow.
const POOL_LEN: usize = 64;
/// A ring that carried more than this is trimmed before its pages rest.
const TRIM_FROM: usize = 128 << 10;

/// What all TCP endpoints of a port share.
pub struct TcpStack {
    pub(super) interface: Interface,
    pool: Vec<Rings>,
    /// Largest IP packet on the network.
    pub(super) mtu: u16,
}

/// A socket with its rings. The set and the ring are dropped before the memory that they refer to.
pub(super) struct Rings {
    pub(super) sockets: SocketSet<'static>,
    pub(super) handle: SocketHandle,
    pub(super) direct: Direct,
    memory: RingMemory,
    /// Bytes that went through since the last trim.
    carried: usize,
}

impl TcpStack {
    /// A stack for a guest on a network of that MTU; `seed` makes initial sequence numbers.
    pub fn new(seed: u64, mtu: u16, now: Instant) -> Self {
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut Capabilities, clock(now));
        interface.set_any_ip(true);
        Self { interface, pool: Vec::new(), mtu }
    }

    /// An endpoint that will answer a SYN for `local`.
    pub fn listen(&mut self, local: SocketAddr) -> io::Result<Endpoint> {
        let mut rings = self.rings()?;
        let socket = rings.sockets.get_mut::<Socket<'_>>(rings.handle);
        socket
            .listen(IpListenEndpoint::from(IpEndpoint::from(local)))
            .expect("a closed socket can listen on a port that is not zero");
        Ok(Endpoint::new(rings))
    }

    /// An endpoint that sends a SYN from `local` to `guest`.
    pub fn connect(&mut self, local: SocketAddr, guest: SocketAddr) -> io::Result<Endpoint> {
        let mut rings = self.rings()?;
        let socket = rings.sockets.get_mut::<Socket<'_>>(rings.handle);
        socket
            .connect(
                self.interface.context(),
                IpEndpoint::from(guest),
                IpListenEndpoint::from(IpEndpoint::from(local)),
            )
            .map_err(|_| io::Error::from(io::ErrorKind::AddrNotAvailable))?;
        Ok(Endpoint::new(rings))
    }

    /// Takes an endpoint's rings back.
    pub fn recycle(&mut self, endpoint: Endpoint) {
        let mut rings = endpoint.into_rings();
        if self.pool.len() < POOL_LEN {
            rings.sockets.get_mut::<Socket<'_>>(rings.handle).abort();
            rings.trim_if_used();
            self.pool.push(Rings { direct: rings.direct.clear(), ..rings });
        }
    }

    fn rings(&mut self) -> io::Result<Rings> {
        match self.pool.pop() {
            Some(rings) => Ok(rings),
            None => Rings::new(),
        }
    }
}

impl Rings {
    #[expect(unsafe_code, reason = "lends a mapping to smoltcp for as long as both live")]
    fn new() -> io::Result<Self> {
        let memory = RingMemory::new()?;
        // SAFETY: called once; the slices end up in `sockets` and `direct`, which are declared before `memory` and so
        // dropped before it, and which never leave this struct.
        let [receive, send, direct] = unsafe { memory.rings() };
        let mut socket = Socket::new(SocketBuffer::new(receive), SocketBuffer::new(send));
        // The guest and the host's peer delay and coalesce as they wish; we add nothing to that. An
        // acknowledgement of less than a segment waits for the answer that will carry it, but not long.
        let delay = u64::try_from(ACK_DELAY.as_micros()).expect("milliseconds") * CLOCK_SPEED;
        socket.set_ack_delay(Some(smoltcp::time::Duration::from_micros(delay)));
        socket.set_nagle_enabled(false);
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Ok(Self { sockets, handle, direct: Direct::new(direct), memory, carried: 0 })
    }

    /// So many bytes went through.
    pub(super) fn note_carried(&mut self, len: usize) {
        self.carried += len;
    }

    /// Whether more than a few pages were used since the last trim.
    pub(super) fn wants_trim(&self) -> bool {
        self.carried > TRIM_FROM
    }

    /// Gives the pages back that were used; both rings must be empty.
    pub(super) fn trim_if_used(&mut self) {
        if self.wants_trim() {
            self.memory.trim();
            self.carried = 0;
        }
    }
}

/// The same moment on smoltcp's clock.
pub(super) fn clock(now: Instant) -> smoltcp::time::Instant {
    let micros = now.micros().saturating_mul(CLOCK_SPEED);
    smoltcp::time::Instant::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
}

/// A moment of smoltcp's clock on ours.
pub(super) fn on_our_clock(at: smoltcp::time::Instant) -> Instant {
    Instant::from_micros(u64::try_from(at.total_micros()).unwrap_or(0) / CLOCK_SPEED)
}
