//! One virtual machine's network device as its monitor sets it up: state and checks, without I/O.
//!
//! Whoever serves the connection takes the rings out of use before a message that changes anything, and
//! asks for them again after it; so nothing here has to care for rings that run.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use lichen_netstack::port::alarm::Alarm;
use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};

use crate::bell;
use crate::features::{self, OFFERED, PROTOCOL_FEATURES};
use crate::memory::{Described, MAX_REGIONS, Memory, MemoryError, Shared};
use crate::port::{Failure, VhostPort};
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
        Self { memory: Memory::default(), features: 0, protocol: 0, rings: Default::default() }
    }

    /// Whether the guest's driver has agreed on its features.
    pub(crate) fn has_features(&self) -> bool {
        self.features != 0
    }

    /// Whether the guest's driver is there and has rings, and only memory to find them in is missing. Monitors share it
    /// before they say anything of rings, or within the same moment.
    pub(crate) fn lacks_memory(&self) -> bool {
        let mut rings = self.rings.iter();
        self.memory.shared().is_none()
            && self.has_features()
            && rings.any(|ring| ring.is_enabled || ring.started().is_some())
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
        let (mut from_guest, mut to_guest) = (Vec::new(), Vec::new());
        for (at, ring) in self.rings.iter().enumerate() {
            let Some((addresses, kick)) = ring.started() else { continue };
            let layout = self.layout(memory, ring.size, addresses)?;
            let notifiers = Notifiers { kick: Arc::clone(kick), call: ring.call.clone() };
            let (map, agreed) = (Arc::clone(&memory.map), features::ring_features(self.features));
            match (at % 2, self.served(ring)) {
                (0, Served::Enabled) => {
                    to_guest.push(Receiving::new(ToGuest::resume(map, layout, agreed)?, notifiers));
                }
                // A guest is given nothing on a ring that it has switched off.
                (0, Served::Disabled) => {}
                (_, served) => {
                    let ring = FromGuest::resume(map, layout, agreed)?;
                    from_guest.push(Sending { ring, notifiers, served });
                }
            }
        }
        let offloads = features::offloads(self.features);
        let rings = (from_guest, to_guest);
        Ok(Some(VhostPort::new(rings, offloads, memory.clone(), Arc::clone(alarm))))
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

    fn ring(&mut self, index: u32) -> Result<&mut Ring> {
        // Who did not agree on MQ may not know that there are more.
        let multiple = self.protocol & VhostUserProtocolFeatures::MQ.bits() != 0;
        let rings = if multiple { RINGS } else { 2 };
        let ring = usize::try_from(index).ok().and_then(|at| self.rings[..rings].get_mut(at));
        ring.ok_or_else(|| {
            refused(&format!(
                "the monitor names ring {index} of a device that has {rings}; start it with at most \
                 {MAX_PAIRS} queue pairs"
            ))
        })
    }

    /// A ring that has not been started: its place cannot change while it runs.
    fn resting(&mut self, index: u32) -> Result<&mut Ring> {
        let ring = self.ring(index)?;
        if ring.kick.is_some() {
            return Err(refused("the monitor moves a ring that runs"));
        }
        Ok(ring)
    }

    fn reset(&mut self) {
        self.rings = Default::default();
        self.features = 0;
    }
}

fn refused(why: &str) -> Error {
    Error::ReqHandlerError(io::Error::other(why))
}

impl From<MemoryError> for Error {
    fn from(error: MemoryError) -> Self {
        Self::ReqHandlerError(io::Error::other(error.to_string()))
    }
}

/// A descriptor that wakes somebody; anything but an eventfd is refused, since signalling it or waiting for it
/// could do anything. That it is rung once too often for this is something that both sides bear.
fn eventfd(file: File) -> Result<Arc<OwnedFd>> {
    let fd = OwnedFd::from(file);
    match bell::ring(fd.as_fd()) {
        Ok(()) => Ok(Arc::new(fd)),
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            Err(refused("the monitor gives a ring a descriptor that is no eventfd"))
        }
        Err(error) => Err(refused(&format!("a ring's eventfd cannot be used: {error}"))),
    }
}

fn described(region: &VhostUserMemoryRegion) -> Described {
    Described {
        guest: region.guest_phys_addr,
        user: region.user_addr,
        len: region.memory_size,
        offset: region.mmap_offset,
    }
}

impl VhostUserBackendReqHandlerMut for Device {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.reset();
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        self.reset();
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(OFFERED)
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !OFFERED != 0 {
            return Err(refused("the monitor agrees to features that were not offered"));
        }
        self.features = features;
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        self.memory = Memory::default();
        self.memory.replace(regions.iter().map(described).zip(files))?;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let size = u16::try_from(num).ok().filter(|size| size.is_power_of_two());
        let size = size.ok_or_else(|| refused("the monitor gives a ring an impossible size"))?;
        self.resting(index)?.size = size;
        Ok(())
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _: u64,
    ) -> Result<()> {
        self.resting(index)?.addresses = Some([descriptor, available, used]);
        Ok(())
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let base = u16::try_from(base)
            .map_err(|_| refused("the monitor starts a ring at an impossible index"))?;
        self.resting(index)?.base = base;
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let at = usize::try_from(index).expect("a u32 fits");
        self.ring(index)?;
        let progress = self.progress(at);
        let ring = &mut self.rings[at];
        ring.base = progress;
        // The ring is stopped until it is given another kick.
        (ring.kick, ring.call) = (None, None);
        Ok(VhostUserVringState::new(index, progress.into()))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let file = fd.ok_or_else(|| refused("the monitor wants a ring to be polled"))?;
        self.ring(index.into())?.kick = Some(eventfd(file)?);
        Ok(())
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let call = fd.map(eventfd).transpose()?;
        self.ring(index.into())?.call = call;
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, _: Option<File>) -> Result<()> {
        // Errors are told by the connection's end and in the list of workloads.
        self.ring(index.into()).map(|_| ())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(features::protocol_features())
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        if features & !features::protocol_features().bits() != 0 {
            return Err(refused("the monitor agrees to protocol features that were not offered"));
        }
        self.protocol = features;
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        // Rings, as the specification and cloud-hypervisor have it. QEMU takes it for pairs: who gives it too many is
        // told when it names the first ring beyond.
        Ok(RINGS as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.ring(index)?.is_enabled = enable;
        Ok(())
    }

    fn get_config(&mut self, _: u32, _: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        Err(not_offered())
    }

    fn set_config(&mut self, _: u32, _: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        Err(not_offered())
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        Err(not_offered())
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        Err(not_offered())
    }

    fn get_inflight_fd(&mut self, _: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        Err(not_offered())
    }

    fn set_inflight_fd(&mut self, _: &VhostUserInflight, _: File) -> Result<()> {
        Err(not_offered())
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MAX_REGIONS as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        self.memory.add(described(region), file)?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        Ok(self.memory.remove(described(region))?)
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        Err(not_offered())
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(not_offered())
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(not_offered())
    }

    fn set_log_base(&mut self, _: &VhostUserLog, _: File) -> Result<()> {
        Err(not_offered())
    }
}

fn not_offered() -> Error {
    refused("the monitor asks for what was not offered")
}
