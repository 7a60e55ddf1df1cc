//! One monitor's connection: messages in, rings in and out of use.
//!
//! The protocol itself is the crate `vhost`'s, behind a socket pair: it waits for bytes that are missing, and
//! descriptors where none belong make it wait for ever. So a message is handed on as one piece, once
//! [`channel`] has it as a whole. Four messages are taken here that the crate refuses and monitors
//! send; and one that changes anything is handled while no ring is in use.

mod channel;

use std::io::{self, IoSlice, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lichen_netstack::command::LinkState;
use lichen_netstack::ids::{MacAddr, PortId};
use lichen_netstack::port::alarm::Alarm;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use vhost::vhost_user::{BackendReqHandler, Error, VhostUserBackendReqHandlerMut as _};

use self::channel::{Channel, HEADER_LEN, Header, MAX_BODY, MAX_DESCRIPTORS, Verdict};
use crate::device::{Device, NotRunning};
use crate::port::{Failure, VhostPort};
use crate::service::Datapath;

/// How long a connection may stay without its first message, a message without its end, or rings without what they
/// need.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// Messages handled in one turn.
const MAX_BATCH: usize = 64;

// Messages by their number in the vhost-user specification.
const SET_FEATURES: u32 = 2;
const RESET_OWNER: u32 = 4;
const SET_MEM_TABLE: u32 = 5;
const SET_LOG_BASE: u32 = 6;
const SET_LOG_FD: u32 = 7;
const SET_VRING_CALL: u32 = 13;
const SET_VRING_ENABLE: u32 = 18;
const SEND_RARP: u32 = 19;
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

/// A connection from its first byte to its last.
pub(crate) struct Session {
    port: PortId,
    /// The only address that the guest may send from.
    mac: MacAddr,
    /// How often the monitor has announced the guest.
    announcements: u64,
    /// To the monitor.
    channel: Channel,
    /// To the handler, which has the other end.
    inner: UnixStream,
    handler: BackendReqHandler<Mutex<Device>>,
    device: Arc<Mutex<Device>>,
    alarm: Arc<Alarm<Failure>>,
    /// The kicks that the datapath watches, while the rings run.
    plugged: Option<Vec<Arc<OwnedFd>>>,
    /// Since when something is waited for that must come soon.
    waiting_since: Option<Instant>,
    /// Since when rings are there, and something else that they need is not.
    missing_since: Option<Instant>,
}

impl Session {
    /// Takes over an accepted connection.
    pub(crate) fn new(
        (port, mac): (PortId, MacAddr),
        stream: UnixStream,
        wake: Arc<OwnedFd>,
        now: Instant,
    ) -> io::Result<Self> {
        let channel = Channel::new(stream)?;
        let (inner, handlers) = UnixStream::pair()?;
        inner.set_nonblocking(true)?;
        let device = Arc::new(Mutex::new(Device::new()));
        let handler = BackendReqHandler::from_stream(handlers, Arc::clone(&device));
        let alarm = Arc::new(Alarm::new(wake));
        let waiting_since = Some(now);
        Ok(Self {
            port,
            mac,
            announcements: 0,
            channel,
            inner,
            handler,
            device,
            alarm,
            plugged: None,
            waiting_since,
            missing_since: None,
        })
    }

    /// When time runs out unless something comes before.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        [self.waiting_since, self.missing_since].into_iter().flatten().min().map(|it| it + PATIENCE)
    }

    /// Judges what has not come by its deadline. Answers the state of the link, where it has changed.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Result<Option<LinkState>, Ended> {
        let is_over = |since: &mut Instant| *since + PATIENCE <= now;
        if self.waiting_since.take_if(is_over).is_some() {
            let why = "whoever connected did not speak vhost-user within five seconds";
            return Err(Ended::Trouble(why.to_owned()));
        }
        let missing = self.missing_since.take_if(is_over).and_then(|_| self.device().missing());
        Ok(missing.map(|why| LinkState::Trouble { reason: why.to_string() }))
    }

    /// What its rings have raised while they ran.
    pub(crate) fn failure(&self) -> Option<Ended> {
        let why = match self.alarm.raised()? {
            Failure::Ring => "the guest has broken a ring; restart the guest",
            Failure::Memory => {
                "the guest's memory was cut short by its monitor; restart the monitor"
            }
            Failure::Log => {
                "the log of written pages was cut short by the monitor; restart the monitor"
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
            let Some(header) = self.channel.next_header()? else {
                self.note_partial(now)?;
                break;
            };
            if header.changes_something() {
                stopped |= self.unplug(datapath);
            }
            self.handle_message(header)?;
            self.waiting_since = None;
        }
        self.note_missing(now);
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
                let kicks: Vec<BorrowedFd<'_>> = kicks.iter().map(AsFd::as_fd).collect();
                datapath.unplug(self.port, &kicks);
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

    /// A message that has begun must end soon.
    fn note_partial(&mut self, now: Instant) -> Result<(), Ended> {
        if self.channel.waiting()? > 0 && self.waiting_since.is_none() {
            self.waiting_since = Some(now);
        }
        Ok(())
    }

    /// QEMU whose memory cannot be shared goes on without a word, and stays connected.
    fn note_missing(&mut self, now: Instant) {
        let is_missing = self.device().missing().is_some();
        self.missing_since = is_missing.then(|| self.missing_since.unwrap_or(now));
    }

    fn handle_message(&mut self, header: Header) -> Result<(), Ended> {
        let (message, descriptors) = self.channel.read_message(header)?;
        let number = |at: usize| {
            let bytes = message.get(HEADER_LEN + at..HEADER_LEN + at + 4);
            bytes.map(|bytes| u32::from_ne_bytes(bytes.try_into().expect("four")))
        };
        match (header.request, number(0), number(4)) {
            // QEMU enables its rings before the guest has agreed on features.
            (SET_VRING_ENABLE, Some(index), Some(enable @ 0..=1))
                if !self.device().has_features() =>
            {
                self.device().set_vring_enable(index, enable == 1)?;
                self.acknowledge(header, Verdict::Done)
            }
            (NET_SET_MTU, Some(low), Some(high)) => {
                // The monitor tells its guest; the network's own limit holds in any case.
                let mtu = u64::from(high) << 32 | u64::from(low);
                if !(68..=65_535).contains(&mtu) {
                    return Err(Ended::Trouble(format!("the monitor sets an MTU of {mtu}")));
                }
                self.acknowledge(header, Verdict::Done)
            }
            (SEND_RARP, Some(_), Some(_))
                if header.len == 8
                    && descriptors.is_empty()
                    && self.device().is_told_of_guests() =>
            {
                let mac = message[HEADER_LEN..HEADER_LEN + 6].try_into().expect("six bytes");
                self.handle_announcement(header, MacAddr(mac))
            }
            (SET_LOG_BASE, ..) if descriptors.len() != 1 => Err(Ended::Trouble(
                "the monitor gives a log of written pages without its file".into(),
            )),
            (SET_LOG_FD, ..) => {
                let why = "the monitor gives no descriptor to be told by of its log, or several";
                let [call] = <[OwnedFd; 1]>::try_from(descriptors)
                    .map_err(|_| Ended::Trouble(why.to_owned()))?;
                self.device().set_log_fd(call.into())?;
                self.acknowledge(header, Verdict::Done)
            }
            _ => self.hand_on(&message, &descriptors),
        }
    }

    /// The guest has moved here from another host, and its driver cannot tell so itself. Elsewhere switches
    /// would learn where it is now; this one knows its guests' addresses from control, and neighbours have the
    /// same one as before. So what is left is to see that it is the address of this place.
    fn handle_announcement(&mut self, header: Header, announced: MacAddr) -> Result<(), Ended> {
        self.announcements += 1;
        let (port, times, mac) = (self.port, self.announcements, self.mac);
        if announced == mac {
            tracing::info!(%port, times, "a virtual machine is announced by its monitor");
            return self.acknowledge(header, Verdict::Done);
        }
        // Not the connection's end: the guest may have the right address, which it can set itself.
        if times.is_power_of_two() {
            tracing::warn!(
                %port, times,
                "a monitor announces {announced}, which is not its guest's; start it with mac={mac}"
            );
        }
        self.acknowledge(header, Verdict::Refused)
    }

    /// Lets the handler answer a message, and passes its answer on.
    fn hand_on(&mut self, message: &[u8], descriptors: &[OwnedFd]) -> Result<(), Ended> {
        let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !borrowed.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(&borrowed));
        }
        let slices = &[IoSlice::new(message)];
        let sent = sendmsg(&self.inner, slices, &mut ancillary, SendFlags::NOSIGNAL)
            .map_err(io::Error::from)?;
        // The handler waits for what is missing; a message is far shorter than a socket's buffer.
        if sent < message.len() {
            return Err(Error::PartialMessage.into());
        }
        let handled = self.handler.handle_request();
        let mut answer = [0; HEADER_LEN + MAX_BODY];
        match self.inner.read(&mut answer) {
            Ok(len) => self.channel.answer(&answer[..len])?,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        Ok(handled?)
    }

    /// Answers a monitor that wants a word about its message, if it may.
    fn acknowledge(&self, header: Header, verdict: Verdict) -> Result<(), Ended> {
        if self.device().replies() { self.channel.acknowledge(header, verdict) } else { Ok(()) }
    }
}

impl Header {
    /// Whether the rings must rest while the message is handled.
    fn changes_something(self) -> bool {
        matches!(
            self.request,
            SET_FEATURES | RESET_OWNER | SET_MEM_TABLE
                ..=SET_VRING_CALL | SET_VRING_ENABLE | RESET_DEVICE | ADD_MEM_REG | REM_MEM_REG
        )
    }
}

impl AsFd for Session {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

#[cfg(test)]
mod tests;
