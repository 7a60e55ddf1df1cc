//! What the messages of a monitor do to its device. Those that were not offered are refused.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};

use super::{Device, MAX_PAIRS, RINGS, Ring};
use crate::bell;
use crate::features::{self, OFFERED};
use crate::log::DirtyLog;
use crate::memory::{Described, MAX_REGIONS, Memory, MemoryError};

impl Device {
    /// Whom to signal when a page was logged (`SET_LOG_FD`), which the crate `vhost` has no word for.
    pub(crate) fn set_log_fd(&mut self, file: File) -> Result<()> {
        self.log_call = Some(eventfd(file)?);
        Ok(())
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
        flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        log: u64,
    ) -> Result<()> {
        let addresses = Some([descriptor, available, used]);
        let known = self.ring(index)?;
        // A ring that stays where it is may be logged from now on, or no longer.
        let ring = if known.addresses == addresses { known } else { self.resting(index)? };
        ring.addresses = addresses;
        ring.log = flags.contains(VhostUserVringAddrFlags::VHOST_VRING_F_LOG).then_some(log);
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

    fn set_log_base(&mut self, log: &VhostUserLog, file: File) -> Result<()> {
        let mapped = DirtyLog::map(file, log.mmap_offset, log.mmap_size);
        self.log = Some(Arc::new(mapped.map_err(|why| refused(&why.to_string()))?));
        Ok(())
    }
}

fn not_offered() -> Error {
    refused("the monitor asks for what was not offered")
}
