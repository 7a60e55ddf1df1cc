//! One monitor's connection: messages in, rings in and out of use.
//!
//! The protocol itself is the crate `vhost`'s. In front of it stands a look at each message's header: a
//! message is only read when it is there as a whole, so that nobody can make this thread wait; two
//! messages are taken here that the crate refuses and QEMU sends; and one that changes anything is
//! handled while no ring is in use.

use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lichen_netstack::command::LinkState;
use lichen_netstack::ids::PortId;
use rustix::net::RecvFlags;
use vhost::vhost_user::{BackendReqHandler, Error, VhostUserBackendReqHandlerMut as _};

use crate::device::{Device, NotRunning};
use crate::port::{Alarm, Failure, VhostPort};
use crate::service::Datapath;

/// How long a connection may stay without its first message, or a message without its end.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// A monitor that does not read its answers for this long is given up.
const WRITE_PATIENCE: Duration = Duration::from_secs(1);
/// Messages handled in one turn.
const MAX_BATCH: usize = 64;

const HEADER_LEN: usize = 12;
/// The longest message of the protocol.
const MAX_BODY: usize = 4096;
const NEED_REPLY: u32 = 1 << 3;
/// Version 1, and a reply.
const REPLY: u32 = 1 | 1 << 2;

// Messages by their number in the vhost-user specification.
const SET_FEATURES: u32 = 2;
const RESET_OWNER: u32 = 4;
const SET_MEM_TABLE: u32 = 5;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_CALL: u32 = 13;
const SET_VRING_ENABLE: u32 = 18;
const NET_SET_MTU: u32 = 20;
const RESET_DEVICE: u32 = 34;
const ADD_MEM_REG: u32 = 37;
const REM_MEM_REG: u32 = 38;

/// Why a session is over.
#[derive(Debug)]
pub(crate) enum Ended {
    /// The monitor closed the connection.
    Gone,
    /// Something was wrong, in a sentence.
    Trouble(String),
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Self::Gone,
            _ => Self::Trouble(format!("the connection to the monitor failed: {error}")),
        }
    }
}

impl From<Error> for Ended {
    fn from(error: Error) -> Self {
        match error {
            Error::Disconnected | Error::SocketBroken(_) => Self::Gone,
            Error::ReqHandlerError(why) => Self::Trouble(why.to_string()),
            other => Self::Trouble(format!("the monitor sent a message that was refused: {other}")),
        }
    }
}

/// The header of a message.
#[derive(Clone, Copy)]
struct Header {
    request: u32,
    flags: u32,
    len: usize,
}

/// A connection from its first byte to its last.
pub(crate) struct Session {
    port: PortId,
    stream: UnixStream,
    handler: BackendReqHandler<Mutex<Device>>,
    device: Arc<Mutex<Device>>,
    alarm: Arc<Alarm>,
    /// The kicks that the datapath watches, while the rings run.
    plugged: Option<[Arc<OwnedFd>; 2]>,
    /// Since when something is waited for that must come soon.
    waiting_since: Option<Instant>,
}

impl Session {
    /// Takes over an accepted connection.
    pub(crate) fn new(
        port: PortId,
        stream: UnixStream,
        wake: Arc<OwnedFd>,
        now: Instant,
    ) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_write_timeout(Some(WRITE_PATIENCE))?;
        let device = Arc::new(Mutex::new(Device::new()));
        let handler = BackendReqHandler::from_stream(stream.try_clone()?, Arc::clone(&device));
        let alarm = Arc::new(Alarm::new(wake));
        let waiting_since = Some(now);
        Ok(Self { port, stream, handler, device, alarm, plugged: None, waiting_since })
    }

    /// When it is over unless something comes before.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.waiting_since.map(|since| since + PATIENCE)
    }

    /// Whether the monitor has closed its end and everything it sent was read.
    pub(crate) fn is_gone(&self) -> bool {
        matches!(self.waiting(), Ok(0)) && matches!(self.peek(&mut [0]), Ok(0))
    }

    /// What its rings have raised while they ran.
    pub(crate) fn failure(&self) -> Option<Ended> {
        let why = match self.alarm.failure()? {
            Failure::Ring => "the guest has broken a ring; restart the guest",
            Failure::Memory => {
                "the guest's memory was cut short by its monitor; restart the monitor"
            }
        };
        Some(Ended::Trouble(why.to_owned()))
    }

    /// Handles what has come. Answers the state of the link, where it has changed.
    pub(crate) fn handle_readable(
        &mut self,
        now: Instant,
        datapath: &mut impl Datapath,
    ) -> Result<Option<LinkState>, Ended> {
        let mut stopped = false;
        for _ in 0..MAX_BATCH {
            let Some(header) = self.next_header()? else {
                self.note_partial(now)?;
                break;
            };
            if header.changes_something() {
                stopped |= self.unplug(datapath);
            }
            self.handle_message(header)?;
            self.waiting_since = None;
        }
        match self.plug(datapath) {
            Ok(true) => Ok(Some(LinkState::Connected)),
            Ok(false) if stopped && self.plugged.is_none() => Ok(Some(LinkState::Waiting)),
            Ok(false) => Ok(None),
            // The monitor stays connected: a guest whose memory is not shared is not ended for it.
            Err(error @ NotRunning::NotShared) => {
                Ok(Some(LinkState::Trouble { reason: error.to_string() }))
            }
            Err(error) => Err(Ended::Trouble(error.to_string())),
        }
    }

    /// Takes the rings out of use. Answers whether they were in use.
    pub(crate) fn unplug(&mut self, datapath: &mut impl Datapath) -> bool {
        match self.plugged.take() {
            Some(kicks) => {
                datapath.unplug(self.port, [kicks[0].as_fd(), kicks[1].as_fd()]);
                true
            }
            None => false,
        }
    }

    /// Puts the rings to use when they can be. Answers whether that is new.
    fn plug(&mut self, datapath: &mut impl Datapath) -> Result<bool, NotRunning> {
        if self.plugged.is_some() {
            return Ok(false);
        }
        let Some(port) = self.device().port(&self.alarm)? else { return Ok(false) };
        self.plugged = Some(VhostPort::kick_owners(&port));
        datapath.plug(self.port, port);
        Ok(true)
    }

    fn device(&self) -> std::sync::MutexGuard<'_, Device> {
        self.device.lock().expect("one thread uses it, and ends with a panic")
    }

    /// Bytes that have come.
    fn waiting(&self) -> io::Result<usize> {
        let waiting = rustix::io::ioctl_fionread(&self.stream)?;
        Ok(usize::try_from(waiting).unwrap_or(usize::MAX))
    }

    fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        Ok(rustix::net::recv(&self.stream, buffer, flags)?.0)
    }

    /// The next message's header, once the message is there as a whole.
    fn next_header(&self) -> Result<Option<Header>, Ended> {
        let waiting = self.waiting()?;
        if waiting == 0 {
            return match self.peek(&mut [0]) {
                Ok(0) => Err(Ended::Gone),
                Ok(_) => Ok(None),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
                Err(error) => Err(error.into()),
            };
        }
        if waiting < HEADER_LEN {
            return Ok(None);
        }
        let mut bytes = [0; HEADER_LEN];
        if self.peek(&mut bytes)? < HEADER_LEN {
            return Ok(None);
        }
        let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four"));
        let len = usize::try_from(word(8)).expect("a u32 fits");
        if len > MAX_BODY {
            return Err(Ended::Trouble(format!("the monitor sent a message of {len} bytes")));
        }
        let header = Header { request: word(0), flags: word(4), len };
        Ok((waiting >= HEADER_LEN + len).then_some(header))
    }

    /// A message that has begun must end soon.
    fn note_partial(&mut self, now: Instant) -> Result<(), Ended> {
        if self.waiting()? > 0 && self.waiting_since.is_none() {
            self.waiting_since = Some(now);
        }
        Ok(())
    }

    fn handle_message(&mut self, header: Header) -> Result<(), Ended> {
        match header.request {
            // QEMU enables its rings before the guest has agreed on features.
            SET_VRING_ENABLE if !self.device().has_features() => {
                let (index, enable) = self.read_pair(header)?;
                let is_enabled = match enable {
                    0 => false,
                    1 => true,
                    _ => return Err(Error::InvalidParam.into()),
                };
                self.device().set_vring_enable(index, is_enabled)?;
                self.acknowledge(header)
            }
            NET_SET_MTU => {
                // The monitor tells its guest; the network's own limit holds in any case.
                let (low, high) = self.read_pair(header)?;
                let mtu = u64::from(high) << 32 | u64::from(low);
                if !(68..=65_535).contains(&mtu) {
                    return Err(Ended::Trouble(format!("the monitor sets an MTU of {mtu}")));
                }
                self.acknowledge(header)
            }
            _ => Ok(self.handler.handle_request()?),
        }
    }

    /// Takes a message whose body is two numbers.
    fn read_pair(&self, header: Header) -> Result<(u32, u32), Ended> {
        let mut bytes = [0; HEADER_LEN + 8];
        if header.len != 8
            || rustix::net::recv(&self.stream, &mut bytes[..], RecvFlags::DONTWAIT)
                .map_err(io::Error::from)?
                .0
                < bytes.len()
        {
            return Err(Error::InvalidMessage.into());
        }
        let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four"));
        Ok((word(HEADER_LEN), word(HEADER_LEN + 4)))
    }

    fn acknowledge(&mut self, header: Header) -> Result<(), Ended> {
        if header.flags & NEED_REPLY == 0 || !self.device().replies() {
            return Ok(());
        }
        let mut reply = Vec::with_capacity(HEADER_LEN + 8);
        for word in [header.request, REPLY, 8, 0, 0] {
            reply.extend_from_slice(&word.to_ne_bytes());
        }
        Ok((&self.stream).write_all(&reply)?)
    }
}

impl Header {
    /// Whether the rings must rest while the message is handled.
    fn changes_something(self) -> bool {
        matches!(
            self.request,
            SET_FEATURES | RESET_OWNER | SET_MEM_TABLE | SET_VRING_NUM
                ..=SET_VRING_CALL | SET_VRING_ENABLE | RESET_DEVICE | ADD_MEM_REG | REM_MEM_REG
        )
    }
}

impl AsFd for Session {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
