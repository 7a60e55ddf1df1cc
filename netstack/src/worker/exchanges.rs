//! The sockets of questions to the host's resolvers: a fresh one for each question, so that its source
//! port is as hard to guess as the kernel makes it.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;

use slab::Slab;

use crate::command::Transport;
use crate::gateway::names::Reply;
use crate::host::{Arrival, Datagram, Host, Readiness, Stream, Token, TokenKind};

/// Questions under way.
pub(super) struct Exchanges<H: Host> {
    open: Slab<Exchange<H>>,
    /// From the name service's number to the slab's.
    index: HashMap<u32, usize>,
}

struct Exchange<H: Host> {
    number: u32,
    socket: Socket<H>,
}

enum Socket<H: Host> {
    Datagram(H::Datagram),
    Stream { stream: H::Stream, unsent: Vec<u8>, received: Vec<u8> },
}

impl<H: Host> Default for Exchanges<H> {
    fn default() -> Self {
        Self { open: Slab::new(), index: HashMap::new() }
    }
}

impl<H: Host> Exchanges<H> {
    /// Opens a socket and asks.
    pub(super) fn ask(
        &mut self,
        host: &mut H,
        number: u32,
        resolver: SocketAddr,
        transport: Transport,
        message: Vec<u8>,
    ) -> io::Result<()> {
        let entry = self.open.vacant_entry();
        let key = entry.key();
        let index = u32::try_from(key).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let token = Token { port: 0, kind: TokenKind::Names, index };
        let socket = match transport {
            Transport::Udp => {
                let mut socket = host.open_udp(resolver, token)?;
                socket.send(&message, None, None)?;
                Socket::Datagram(socket)
            }
            Transport::Tcp => {
                let len = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
                let mut unsent = len.to_be_bytes().to_vec();
                unsent.extend_from_slice(&message);
                let stream = host.connect(resolver, token)?;
                Socket::Stream { stream, unsent, received: Vec::new() }
            }
        };
        entry.insert(Exchange { number, socket });
        self.index.insert(number, key);
        Ok(())
    }

    /// Closes a question's socket.
    pub(super) fn forget(&mut self, number: u32) {
        if let Some(key) = self.index.remove(&number) {
            self.open.remove(key);
        }
    }

    /// Closes the socket of a token.
    pub(super) fn close(&mut self, index: u32) {
        if let Some(exchange) = self.open.try_remove(index as usize) {
            self.index.remove(&exchange.number);
        }
    }

    /// A socket became ready: `hear` gets what it brought.
    pub(super) fn handle_ready(
        &mut self,
        index: u32,
        readiness: Readiness,
        buffer: &mut [u8],
        mut hear: impl FnMut(u32, Reply<'_>),
    ) {
        let Some(exchange) = self.open.get_mut(index as usize) else { return };
        let number = exchange.number;
        match &mut exchange.socket {
            Socket::Datagram(socket) => loop {
                match socket.receive(buffer) {
                    Ok(Arrival { len, segment_size, .. }) => {
                        for message in buffer[..len].chunks(segment_size.max(1)) {
                            hear(number, Reply::Message(message));
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => return hear(number, Reply::Failed),
                }
            },
            Socket::Stream { stream, unsent, received } => {
                if readiness.writable && !unsent.is_empty() {
                    if stream.connected().is_err() {
                        return hear(number, Reply::Failed);
                    }
                    match stream.send(unsent) {
                        Ok(len) => drop(unsent.drain(..len)),
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        Err(_) => return hear(number, Reply::Failed),
                    }
                }
                match read_message(stream, received, buffer) {
                    Ok(Some(message)) => hear(number, Reply::Message(&message)),
                    Ok(None) => {}
                    Err(_) => hear(number, Reply::Failed),
                }
            }
        }
    }
}

/// Reads until one whole message is there; at most 65,537 bytes are ever kept.
fn read_message(
    stream: &mut impl Stream,
    received: &mut Vec<u8>,
    buffer: &mut [u8],
) -> io::Result<Option<Vec<u8>>> {
    loop {
        if let [high, low, ..] = received[..] {
            let whole = 2 + usize::from(u16::from_be_bytes([high, low]));
            if received.len() >= whole {
                let message = received[2..whole].to_vec();
                received.drain(..whole);
                return Ok(Some(message));
            }
        }
        match stream.receive(buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(len) => received.extend_from_slice(&buffer[..len]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
