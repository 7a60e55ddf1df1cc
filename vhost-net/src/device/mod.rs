//! One virtual machine's network device as its monitor sets it up: state and checks, without I/O.
//!
//! Whoever serves the connection takes the rings out of use before a message that changes anything, and
//! asks for them again after it; so nothing here has to care for rings that run.

mod messages;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use lichen_netstack::port::alarm::Alarm;
use vhost::vhost_user::message::VhostUserProtocolFeatures;

use crate::features::{self, LOG_ALL, PROTOCOL_FEATURES};
use crate::log::{DirtyLog, LogError, Logging};
use crate::memory::{Memory, Shared};
use crate::port::{Failure, VhostPort};
use crate::queue::access::WriteLog;
use crate::queue::error::RingError;
use crate::queue::from_guest::FromGuest;
use crate::queue::layout::Layout;
use crate::queue::to_guest::ToGuest;
use crate::rings::{Notifiers, Receiving, Sending, Served};

/// Most pairs of rings: one worker serves all of a guest's, so that what more of them would win is processors of the
/// guest that need not wait for each other.
const MAX_PAIRS: usize = 4;
/// Rings of a device: of each pair the one to the guest and the one from it.
const RINGS: usize = 2 * MAX_PAIRS;

/// One ring as far as it was set up.
#[derive(Debug, Default)]
struct Ring {
    size: u16,
    /// Descriptors, available, used; in the monitor's terms.
    addresses: Option<[u64; 3]>,
    /// Where its used ring counts as written from, while that is logged. It need not be the guest's memory.
    log: Option<u64>,
    base: u16,
    kick: Option<Arc<OwnedFd>>,
    call: Option<Arc<OwnedFd>>,
    is_enabled: bool,
}

/// Why rings that were set up cannot run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotRunning {
    #[error(
        "the guest's memory is not shared with Lichen; start the monitor with share=on \
         (cloud-hypervisor: shared=on)"
    )]
    NotShared,
    #[error(
        "the monitor shares no memory of its guest with Lichen; start QEMU with -object \
         memory-backend-memfd,id=lichen-memory,size=SIZE,share=on -machine memory-backend=lichen-memory, where SIZE is \
         that of -m (cloud-hypervisor: shared=on)"
    )]
    NoMemory,
    #[error(
        "the monitor wants what is written to its guest's memory to be logged and has not said where; restart the \
         monitor"
    )]
    NoLog,
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("a ring lies where the guest has no memory")]
    Address,
    #[error(transparent)]
    Layout(#[from] crate::queue::layout::LayoutError),
    #[error("a ring cannot be read: {0}")]
    Ring(#[from] RingError),
}

/// The device's whole state.
pub(crate) struct Device {
    memory: Memory,
    features: u64,
    protocol: u64,
    rings: [Ring; RINGS],
    log: Option<Arc<DirtyLog>>,
    /// Whom to signal when something was logged.
    log_call: Option<Arc<OwnedFd>>,
}

impl Ring {
    /// Where it lies, and its kick, once the monitor has started it.
    fn started(&self) -> Option<([u64; 3], &Arc<OwnedFd>)> {
        Some((self.addresses?, self.kick.as_ref()?))
    }
}

impl Device {
    /// A device that nobody has set up.
    pub(crate) fn new() -> Self {
        Self {
            memory: Memory::default(),
            features: 0,
            protocol: 0,
            rings: Default::default(),
            log: None,
            log_call: None,
        }
    }

    /// Whether the guest's driver has agreed on its features.
    pub(crate) fn has_features(&self) -> bool {
        self.features != 0
    }

    /// What alone is missing, where the guest's driver is there and has rings. Monitors say it before they say anything
    /// of rings, or within the same moment.
    pub(crate) fn missing(&self) -> Option<NotRunning> {
        let mut rings = self.rings.iter();
        if !self.has_features() || !rings.any(|ring| ring.is_enabled || ring.started().is_some()) {
            return None;
        }
        match self.memory.shared() {
            None => Some(NotRunning::NoMemory),
            Some(_) => (self.is_logged() && self.log.is_none()).then_some(NotRunning::NoLog),
        }
    }

    /// Whether the monitor wants to know what is written to the guest's memory.
    fn is_logged(&self) -> bool {
        self.features & LOG_ALL != 0
    }

    /// Whether the monitor may ask for a reply to each message.
    pub(crate) fn replies(&self) -> bool {
        self.protocol & VhostUserProtocolFeatures::REPLY_ACK.bits() != 0
    }

    /// Whether the monitor may announce its guest.
    pub(crate) fn is_told_of_guests(&self) -> bool {
        self.protocol & VhostUserProtocolFeatures::RARP.bits() != 0
    }

    /// The rings, when at least one in each direction may run.
    pub(crate) fn port(
        &self,
        alarm: &Arc<Alarm<Failure>>,
    ) -> std::result::Result<Option<VhostPort>, NotRunning> {
        let Some(memory) = self.memory.shared() else { return Ok(None) };
        // To the guest, from the guest.
        let runs = |first: usize| {
            let mut rings = self.rings.iter().skip(first).step_by(2);
            rings.any(|ring| ring.started().is_some() && self.served(ring) == Served::Enabled)
        };
        if !runs(0) || !runs(1) {
            return Ok(None);
        }
        let logging = self.logging(memory)?;
        if self.is_logged() && logging.is_none() {
            return Ok(None);
        }
        let (mut from_guest, mut to_guest) = (Vec::new(), Vec::new());
        for (at, ring) in self.rings.iter().enumerate() {
            let Some((addresses, kick)) = ring.started() else { continue };
            let layout = self.layout(memory, ring.size, addresses)?;
            let notifiers = Notifiers { kick: Arc::clone(kick), call: ring.call.clone() };
            let log = logging.as_ref().map(|it| write_log(it, ring, &layout)).transpose()?;
            let (map, agreed) = (Arc::clone(&memory.map), features::ring_features(self.features));
            match (at % 2, self.served(ring)) {
                (0, Served::Enabled) => {
                    let mut ring = ToGuest::resume(map, layout, agreed)?;
                    ring.log_to(log);
                    to_guest.push(Receiving::new(ring, notifiers));
                }
                // A guest is given nothing on a ring that it has switched off.
                (0, Served::Disabled) => {}
                (_, served) => {
                    let mut ring = FromGuest::resume(map, layout, agreed)?;
                    ring.log_to(log);
                    from_guest.push(Sending { ring, notifiers, served });
                }
            }
        }
        let offloads = features::offloads(self.features);
        let rings = (from_guest, to_guest);
        let memory = (memory.clone(), logging);
        Ok(Some(VhostPort::new(rings, offloads, memory, Arc::clone(alarm))))
    }

    /// Where writes to this memory are logged, while they are to be and it is known.
    fn logging(&self, memory: &Shared) -> std::result::Result<Option<Logging>, LogError> {
        let Some(log) = self.log.as_ref().filter(|_| self.is_logged()) else { return Ok(None) };
        if !log.reaches(memory.last_address()) {
            return Err(LogError::TooShort);
        }
        Ok(Some(Logging { log: Arc::clone(log), call: self.log_call.clone() }))
    }

    /// Whether frames of a ring that has been started are carried. Without PROTOCOL_FEATURES there is no message that
    /// says so, and all are.
    fn served(&self, ring: &Ring) -> Served {
        let is_said = self.features & PROTOCOL_FEATURES != 0 || self.features == 0;
        if is_said && !ring.is_enabled { Served::Disabled } else { Served::Enabled }
    }

    fn layout(
        &self,
        memory: &Shared,
        size: u16,
        addresses: [u64; 3],
    ) -> std::result::Result<Layout, NotRunning> {
        let mut guest = [0; 3];
        for (guest, user) in guest.iter_mut().zip(addresses) {
            *guest = self.memory.translate(user).ok_or(NotRunning::Address)?;
        }
        if self.memory.is_blank(guest[0]) {
            return Err(NotRunning::NotShared);
        }
        Ok(Layout::new(&memory.map, size, guest[0], guest[1], guest[2])?)
    }

    /// How far each ring has come, as the used ring in its memory says.
    fn progress(&self, index: usize) -> u16 {
        use std::sync::atomic::Ordering;
        use vm_memory::{Bytes as _, GuestAddress};
        let ring = &self.rings[index];
        let used = ring.addresses.and_then(|addresses| self.memory.translate(addresses[2]));
        let (Some(used), Some(memory)) = (used, self.memory.shared()) else { return ring.base };
        let Some(at) = used.checked_add(2) else { return ring.base };
        let index: std::result::Result<u16, _> =
            memory.map.load(GuestAddress(at), Ordering::Acquire);
        index.map_or(ring.base, u16::from_le)
    }

    fn reset(&mut self) {
        self.rings = Default::default();
        self.features = 0;
        (self.log, self.log_call) = (None, None);
    }
}

/// Where one ring's writes are logged.
fn write_log(
    logging: &Logging,
    ring: &Ring,
    layout: &Layout,
) -> std::result::Result<WriteLog, LogError> {
    let last = |used: u64| used.checked_add(layout.used_len() - 1);
    let is_outside = |used: u64| !last(used).is_some_and(|last| logging.log.reaches(last));
    if ring.log.is_some_and(is_outside) {
        return Err(LogError::RingOutside);
    }
    Ok(WriteLog { log: Arc::clone(&logging.log), used: ring.log })
}
