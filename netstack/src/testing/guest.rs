//! A guest with a TCP stack of its own, behind a link that may be bad.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::Duration;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::wire::{HardwareAddress, IpEndpoint};

use super::frames::ethernet;
use super::impair::{ImpairedLink, Impairment};
use super::lab::Lab;
use crate::frame::vnet_header::{Gso, GsoKind, PartialChecksum, VNET_LEN, VnetHeader};
use crate::wire::ETHERNET_LEN;
use crate::wire::ip::header_len_of;

const MTU: usize = 1500;

/// A guest of a lab with one TCP connection.
pub struct TcpGuest {
    number: usize,
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    queues: Queues,
    from_guest: ImpairedLink,
    to_guest: ImpairedLink,
}

impl TcpGuest {
    /// A guest in the lab's place `number`, behind a link of that kind.
    pub fn new(lab: &Lab, number: usize, impairment: Impairment, seed: u64) -> Self {
        Self::with(Queues::default(), (lab, number), impairment, seed)
    }

    /// The same, but what it sends leaves its stack in segments of up to 64 KiB.
    pub fn with_large_segments(lab: &Lab, number: usize, link: Impairment, seed: u64) -> Self {
        let queues = Queues { largest: NonZeroUsize::new(65_535), ..Queues::default() };
        Self::with(queues, (lab, number), link, seed)
    }

    /// The same for a connection over IPv6, which smoltcp lets leave in such segments only where they fit the MTU. So
    /// the guest announces that it takes as much, which is more than its link does.
    pub fn with_large_segments6(lab: &Lab, number: usize, link: Impairment, seed: u64) -> Self {
        let largest = NonZeroUsize::new(65_535);
        let queues = Queues { largest, mtu: 65_535, ..Queues::default() };
        Self::with(queues, (lab, number), link, seed)
    }

    fn with(
        mut queues: Queues,
        (lab, number): (&Lab, usize),
        impairment: Impairment,
        seed: u64,
    ) -> Self {
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut queues, clock(lab));
        interface.set_any_ip(true);
        let mut sockets = SocketSet::new(Vec::new());
        let buffer = || SocketBuffer::new(vec![0; 65_535]);
        let handle = sockets.add(Socket::new(buffer(), buffer()));
        Self {
            number,
            interface,
            sockets,
            handle,
            queues,
            from_guest: ImpairedLink::new(impairment, seed ^ 1),
            to_guest: ImpairedLink::new(impairment, seed ^ 2),
        }
    }

    /// Starts a connection from the guest's own address.
    pub fn connect(&mut self, lab: &Lab, from_port: u16, to: &str) {
        let to: SocketAddr = to.parse().expect("an address and port");
        let own = lab.spec(self.number);
        let own = match to {
            SocketAddr::V4(_) => own.address.into(),
            SocketAddr::V6(_) => own.address6.expect("a network with IPv6").into(),
        };
        let local = SocketAddr::new(own, from_port);
        let context = self.interface.context();
        let socket = self.sockets.get_mut::<Socket<'_>>(self.handle);
        socket
            .connect(context, IpEndpoint::from(to), IpEndpoint::from(local))
            .expect("a closed socket");
    }

    /// Waits for a connection.
    pub fn listen(&mut self, port: u16) {
        self.socket().listen(port).expect("a closed socket");
    }

    /// The guest's socket.
    pub fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    /// The connection's state.
    pub fn state(&mut self) -> State {
        self.socket().state()
    }

    /// Makes the link good.
    pub fn heal(&mut self) {
        self.set_link(Impairment::default());
    }

    /// Changes how bad the link is.
    pub fn set_link(&mut self, impairment: Impairment) {
        self.from_guest.set(impairment);
        self.to_guest.set(impairment);
    }

    /// One millisecond of the guest, the lab, and the link between them.
    pub fn step(&mut self, lab: &mut Lab) {
        let wire = lab.wire(self.number).clone();
        let mut arriving = self.to_guest.release();
        while let Some(frame) = wire.take() {
            arriving.extend(self.to_guest.send(frame));
        }
        for frame in arriving {
            if matches!(frame[VNET_LEN + 12..VNET_LEN + ETHERNET_LEN], [8, 0] | [0x86, 0xdd]) {
                self.queues.arriving.push_back(frame[VNET_LEN + ETHERNET_LEN..].to_vec());
            }
        }
        self.interface.poll(clock(lab), &mut self.queues, &mut self.sockets);
        let mut leaving = self.from_guest.release();
        for packet in self.queues.leaving.drain(..) {
            let mac = lab.spec(self.number).mac;
            let ethertype = if packet[0] >> 4 == 6 { 0x86dd } else { 0x0800 };
            let mut frame = ethernet(mac, lab.gateway_mac(self.number), ethertype, &packet);
            if self.queues.largest.is_some() {
                frame[..VNET_LEN].copy_from_slice(&left_to_the_card(&packet).emit());
            }
            leaving.extend(self.from_guest.send(frame));
        }
        leaving.into_iter().for_each(|frame| wire.send(frame));
        lab.advance(Duration::from_millis(1));
    }
}

/// What a card is told of a TCP packet: to complete its checksum, and to cut it where it is large.
fn left_to_the_card(packet: &[u8]) -> VnetHeader {
    let ip_len = header_len_of(packet);
    let start = u16::try_from(ETHERNET_LEN + ip_len).expect("two short headers");
    let header_len = u16::from(packet[ip_len + 12] >> 4) * 4;
    let size = u16::try_from(MTU - ip_len).expect("a segment") - header_len;
    let kind = if packet[0] >> 4 == 6 { GsoKind::Tcpv6 } else { GsoKind::Tcpv4 };
    let gso = Gso { kind, size, header_len: start + header_len, ecn: false };
    VnetHeader {
        checksum: Some(PartialChecksum { start, offset: 16 }),
        gso: (packet.len() > MTU).then_some(gso),
    }
}

fn clock(lab: &Lab) -> smoltcp::time::Instant {
    smoltcp::time::Instant::from_micros(i64::try_from(lab.now.micros()).expect("a short test"))
}

struct Queues {
    arriving: std::collections::VecDeque<Vec<u8>>,
    leaving: Vec<Vec<u8>>,
    /// The largest segment that leaves, where that is not what fits the MTU.
    largest: Option<NonZeroUsize>,
    mtu: usize,
}

impl Default for Queues {
    fn default() -> Self {
        Self { arriving: Default::default(), leaving: Vec::new(), largest: None, mtu: MTU }
    }
}

impl Device for Queues {
    type RxToken<'a> = Packet;
    type TxToken<'a> = Leaving<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Packet, Leaving<'_>)> {
        let packet = self.arriving.pop_front()?;
        Some((Packet(packet), Leaving(&mut self.leaving)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Leaving<'_>> {
        Some(Leaving(&mut self.leaving))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        capabilities.segmentation.tcpv4 = self.largest;
        capabilities.segmentation.tcpv6 = self.largest;
        // What the datapath leaves to the guest's card is not on the simulated wire.
        capabilities.checksum.tcp = match self.largest {
            Some(_) => smoltcp::phy::Checksum::None,
            None => smoltcp::phy::Checksum::Tx,
        };
        capabilities
    }
}

struct Packet(Vec<u8>);

impl RxToken for Packet {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

struct Leaving<'a>(&'a mut Vec<Vec<u8>>);

impl TxToken for Leaving<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        self.0.push(packet);
        result
    }
}
