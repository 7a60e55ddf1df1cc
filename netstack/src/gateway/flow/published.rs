//! Published UDP ports of one port: a socket of the host for each, and a flow for each client.
//!
//! A client is one address and port. The guest sees it under its own address where it can answer that, else
//! as a port of the gateway (`ForwardSource`), and what the guest sends there goes to that client and to
//! nobody else. Answers leave from the address of the host that the client spoke to.
//!
//! A client's address may be forged, so a network from which many new clients come is cut off for a while:
//! the guest is no amplifier, and one network's clients do not take all flows.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use slab::Slab;

use super::datagram_batch::Batch;
use super::datagram_table::{Bounds, DatagramTable};
use super::outgoing::{MAX_BURST, Options, Outgoing, Quote, Sending, send, tell_bounces};
use super::train::Train;
use super::udp::send_train;
use super::view::FlowView;
use super::{FlowContext, FlowKey, ForwardSource, Work};
use crate::budget::SourceLimit;
use crate::command::{FlowProtocol, ForwardSpec, SourceRule};
use crate::counters::DropReason;
use crate::host::{Arrival, Bounce, Datagram, Host, Peer, Token, TokenKind};
use crate::ids::ForwardId;
use crate::port::Port;
use crate::time::Instant;

/// Clients of all published UDP ports of one port at once.
pub const MAX_CLIENTS: usize = 4096;
/// How long a silent client is known.
pub const LIFETIME: Duration = Duration::from_secs(300);
/// New clients of one network in a second; three times as many at once. Loopback is not a network.
pub const NEWCOMERS: u32 = 500;
const BOUNDS: Bounds = Bounds {
    kind: TokenKind::Published,
    flows: MAX_CLIENTS,
    lifetime: LIFETIME,
    shortest: LIFETIME,
};
/// The ports of the gateway that clients are shown as (RFC 6335 calls them dynamic).
const FIRST_PORT: u16 = 49_152;

/// The published UDP ports of one port, and their clients.
pub struct PublishedFlows<D> {
    openings: Slab<Opening<D>>,
    clients: DatagramTable<Client>,
    index: ClientIndex,
    batch: Batch,
    newcomers: SourceLimit,
    identification: u32,
    next_port: u16,
}

/// From opening and address to client.
type ClientIndex = HashMap<(usize, SocketAddr), usize, foldhash::fast::RandomState>;

struct Opening<D> {
    spec: ForwardSpec,
    socket: D,
    options: Options,
}

struct Client {
    opening: usize,
    peer: Peer,
    quote: Quote,
}

/// What decides how a new client is shown to the guest.
pub struct Admission<'a> {
    /// As whom the guest sees a client, and its own address that the client reaches.
    pub source: &'a dyn Fn(SocketAddr, SourceRule) -> (ForwardSource, IpAddr),
    /// Whether two ends mean something else already.
    pub is_taken: &'a dyn Fn(&FlowKey) -> bool,
}

impl<D: Datagram> PublishedFlows<D> {
    /// Nothing is published; `seed` starts the identification of fragments.
    pub fn new(seed: u64) -> Self {
        Self {
            openings: Slab::new(),
            clients: DatagramTable::new(BOUNDS),
            index: HashMap::default(),
            batch: Batch::default(),
            newcomers: SourceLimit::new(NEWCOMERS, 3 * NEWCOMERS),
            identification: (seed >> 32) as u32,
            next_port: FIRST_PORT,
        }
    }

    /// Published UDP ports.
    pub fn openings(&self) -> usize {
        self.openings.len()
    }

    /// The sockets, with their indexes.
    pub fn sockets(&self) -> impl Iterator<Item = (usize, &D)> {
        self.openings.iter().map(|(index, opening)| (index, &opening.socket))
    }

    /// Clients now.
    pub fn len(&self) -> usize {
        self.clients.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.clients.len() == 0
    }

    /// The clients' flows as they are shown.
    pub fn views(&self) -> impl Iterator<Item = FlowView> {
        self.clients.views(FlowProtocol::Udp)
    }

    /// Publishes a port, or replaces the socket of one that is.
    pub fn open<H: Host<Datagram = D>>(
        &mut self,
        host: &mut H,
        slot: u16,
        spec: ForwardSpec,
        socket: D,
    ) -> io::Result<()> {
        self.close(spec.id);
        let entry = self.openings.vacant_entry();
        let index = u32::try_from(entry.key()).expect("published ports are few");
        let token = Token { port: slot, kind: TokenKind::Published, index };
        host.watch_datagram(&socket, token)?;
        entry.insert(Opening { spec, socket, options: Options::default() });
        Ok(())
    }

    /// Closes a published port with all its clients.
    pub fn close(&mut self, forward: ForwardId) {
        let mut openings = self.openings.iter();
        let found = openings.find(|(_, opening)| opening.spec.id == forward);
        let Some(opening) = found.map(|(index, _)| index) else { return };
        self.openings.remove(opening);
        let clients: Vec<usize> = self
            .clients
            .iter()
            .filter(|(_, entry)| entry.flow.opening == opening)
            .map(|(index, _)| index)
            .collect();
        clients.into_iter().for_each(|client| self.clients.close(client));
        self.index.retain(|(index, _), _| *index != opening);
    }

    /// Forgets all clients: the guest has another address now.
    pub fn forget_clients(&mut self) {
        self.clients = DatagramTable::new(BOUNDS);
        self.index.clear();
    }

    /// The socket of a published port became readable. `buffer` holds at least twice 65,535 bytes. Answers
    /// whether more waits.
    pub fn handle_ready<P: Port, H: Host<Datagram = D>>(
        &mut self,
        cx: &mut FlowContext<'_, P, H>,
        opening: usize,
        buffer: &mut [u8],
        admission: &Admission<'_>,
    ) -> bool {
        let mut train = Train::default();
        let mut sender = None;
        let mut more = true;
        for _ in 0..MAX_BURST {
            let Some(open) = self.openings.get_mut(opening) else { return false };
            match open.socket.receive(train.room(buffer)) {
                Ok(arrival) => {
                    let same = sender == arrival.peer.map(|peer| peer.address);
                    if same && train.add(&arrival) {
                        continue;
                    }
                    self.send_train(cx, opening, sender, &train, buffer);
                    train.restart(buffer, &arrival);
                    sender = arrival.peer.map(|peer| peer.address);
                    if let Err(reason) = self.hear(cx, opening, &arrival, admission) {
                        cx.to_guest.counters.drop(reason);
                        (train, sender) = (Train::default(), None);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    more = false;
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.tell_bounces(cx, opening),
            }
        }
        self.send_train(cx, opening, sender, &train, buffer);
        more
    }

    /// Notes that a client has sent something, and lets it in when it is new.
    fn hear<P: Port, H: Host<Datagram = D>>(
        &mut self,
        cx: &mut FlowContext<'_, P, H>,
        opening: usize,
        arrival: &Arrival,
        admission: &Admission<'_>,
    ) -> Result<(), DropReason> {
        let Some(peer) = arrival.peer else { return Err(DropReason::UdpHeader) };
        let client = match self.index.get(&(opening, peer.address)) {
            Some(client) => *client,
            None => self.admit(cx, opening, peer, admission)?,
        };
        if let Some(entry) = self.clients.get_mut(client) {
            entry.heard = cx.now;
            entry.flow.peer = peer;
        }
        Ok(())
    }

    fn send_train<P: Port, H: Host<Datagram = D>>(
        &mut self,
        cx: &mut FlowContext<'_, P, H>,
        opening: usize,
        sender: Option<SocketAddr>,
        train: &Train,
        buffer: &[u8],
    ) {
        let client = sender.and_then(|sender| self.index.get(&(opening, sender)));
        if let Some(entry) = client.and_then(|client| self.clients.get_mut(*client)) {
            let FlowKey { guest, remote } = entry.key;
            entry.traffic.to_guest += train.datagrams(buffer).map_or(0, |(it, _)| it.len() as u64);
            send_train(cx, remote, guest, train, buffer, &mut self.identification);
        }
    }

    fn admit<P: Port, H: Host<Datagram = D>>(
        &mut self,
        cx: &mut FlowContext<'_, P, H>,
        opening: usize,
        peer: Peer,
        admission: &Admission<'_>,
    ) -> Result<usize, DropReason> {
        let ip = peer.address.ip();
        if peer.address.port() == 0 {
            // Nobody can answer it.
            return Err(DropReason::UdpHeader);
        }
        if !ip.is_loopback() && !self.newcomers.take(cx.now, ip) {
            return Err(DropReason::ClientRate);
        }
        // A client that goes takes nothing unsent with it.
        self.handle_batch_end(cx);
        if let Some(gone) = self.clients.make_room() {
            self.index.remove(&(gone.flow.opening, gone.flow.peer.address));
            cx.to_guest.counters.drop(DropReason::ClientBudget);
        }
        let spec = &self.openings[opening].spec;
        let (source, guest) = (admission.source)(peer.address, spec.source);
        let guest = SocketAddr::new(guest, spec.target_port);
        let key = self.key(guest, source, admission).ok_or(DropReason::ClientBudget)?;
        let client = Client { opening, peer, quote: Quote::EMPTY };
        let inserted =
            self.clients.insert(cx.now, cx.slot, key, |_| Ok::<_, DropReason>(client))?;
        self.index.insert((opening, peer.address), inserted);
        Ok(inserted)
    }

    fn key(
        &mut self,
        guest: SocketAddr,
        source: ForwardSource,
        admission: &Admission<'_>,
    ) -> Option<FlowKey> {
        let ports = (FIRST_PORT..=u16::MAX).map(|_| {
            let port = self.next_port;
            self.next_port = port.checked_add(1).unwrap_or(FIRST_PORT);
            port
        });
        source
            .key(guest, ports, |key| self.clients.find(key).is_none() && !(admission.is_taken)(key))
    }

    /// Sends a guest's datagram to the client that `key` stands for; false when there is none. It may wait
    /// for [`PublishedFlows::handle_batch_end`].
    pub fn handle_datagram<P: Port, H: Host<Datagram = D>>(
        &mut self,
        cx: &mut FlowContext<'_, P, H>,
        key: &FlowKey,
        outgoing: Outgoing<'_>,
    ) -> bool {
        let Some(index) = self.clients.find(key) else { return false };
        let wanted = Options::of(outgoing.fragmentation, outgoing.ttl);
        let Some(opening) = self.clients.get_mut(index).map(|entry| entry.flow.opening) else {
            return false;
        };
        if self.openings[opening].options != wanted {
            self.handle_batch_end(cx);
        }
        let Some(entry) = self.clients.get_mut(index) else { return false };
        entry.heard = cx.now;
        entry.traffic.from_guest += outgoing.payload.len() as u64;
        entry.flow.quote = Quote::of(&outgoing);
        let open = &mut self.openings[opening];
        open.options.change(wanted, &mut open.socket);
        if let Some(size) = outgoing.segment_size {
            self.handle_batch_end(cx);
            self.send(cx, index, outgoing.payload, Some(usize::from(size)));
        } else if !self.batch.add(index, outgoing.payload) {
            self.handle_batch_end(cx);
            self.batch.add(index, outgoing.payload);
        }
        true
    }

    /// Sends what waits.
    pub fn handle_batch_end<P: Port, H: Host<Datagram = D>>(
        &mut self,
        cx: &mut FlowContext<'_, P, H>,
    ) {
        if let Some(client) = self.batch.flow() {
            let batch = std::mem::take(&mut self.batch);
            let (bytes, segment_size) = batch.waiting();
            self.send(cx, client, bytes, segment_size);
            self.batch = batch;
        }
        self.batch.clear();
    }

    fn send<P: Port, H: Host<Datagram = D>>(
        &mut self,
        cx: &mut FlowContext<'_, P, H>,
        client: usize,
        bytes: &[u8],
        segment_size: Option<usize>,
    ) {
        let Some(Client { opening, peer, quote }) = self.clients.get(client) else { return };
        let (opening, quote) = (*opening, *quote);
        let sending = Sending { bytes, segment_size, route: Some(*peer) };
        let (clients, index) = (&self.clients, &self.index);
        let quote_of = |bounce: &Bounce, _: &[u8]| match bounce.from {
            // The host's own word about what was just sent.
            None => Some(quote),
            Some(_) => quote_of(clients, index, opening, bounce),
        };
        send(cx, &mut self.openings[opening].socket, &sending, &quote, quote_of);
    }

    /// Tells the guest of answers that did not reach their clients.
    fn tell_bounces<P: Port, H: Host<Datagram = D>>(
        &mut self,
        cx: &mut FlowContext<'_, P, H>,
        opening: usize,
    ) {
        let Some(open) = self.openings.get_mut(opening) else { return };
        let (clients, index) = (&self.clients, &self.index);
        tell_bounces(cx, &mut open.socket, |bounce, _| quote_of(clients, index, opening, bounce));
    }

    /// The guest says that nobody hears what a client sends: the client is forgotten. Nothing can be told
    /// to it, as the host's socket is there. Answers whether there is such a client.
    pub fn handle_unreachable<P: Port, H: Host<Datagram = D>>(
        &mut self,
        cx: &mut FlowContext<'_, P, H>,
        key: &FlowKey,
    ) -> bool {
        self.handle_batch_end(cx);
        let Some(index) = self.clients.find(key) else { return false };
        if let Some(entry) = self.clients.get_mut(index) {
            self.index.remove(&(entry.flow.opening, entry.flow.peer.address));
        }
        self.clients.close(index);
        true
    }

    /// Forgets the clients that were silent for [`LIFETIME`].
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(gone) = self.clients.expire(now) {
            self.index.remove(&(gone.flow.opening, gone.flow.peer.address));
        }
    }

    /// What was done for the flows' timers so far.
    pub fn work(&self) -> Work {
        self.clients.work()
    }

    /// When [`PublishedFlows::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.clients.poll_timeout()
    }
}

/// The last datagram to the client that an error is about.
fn quote_of(
    clients: &DatagramTable<Client>,
    index: &ClientIndex,
    opening: usize,
    bounce: &Bounce,
) -> Option<Quote> {
    let client = index.get(&(opening, bounce.to?))?;
    Some(clients.get(*client)?.quote)
}
