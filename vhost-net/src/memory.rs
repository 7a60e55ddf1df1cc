//! The guest's memory as its monitor shares it: regions of files, mapped and checked.

use std::fs::File;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap, GuestRegionMmap};

use crate::mapping::{self, MapError};
use crate::sigbus::Guard;

/// Regions of one guest at once; QEMU uses a handful.
pub(crate) const MAX_REGIONS: usize = 32;

/// How much of a region is looked at for the traces of a guest.
const BLANK: u64 = 16 << 20;

/// Why memory was refused; the monitor's fault.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MemoryError {
    #[error("the monitor shares more than {MAX_REGIONS} regions of memory")]
    TooMany,
    #[error("a region of memory {0}")]
    Map(#[from] MapError),
    #[error("regions of memory overlap")]
    Overlap,
    #[error("a region of memory is not there to be removed")]
    Unknown,
}

/// One region as the monitor describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Described {
    /// Where the guest sees it.
    pub(crate) guest: u64,
    /// Where the monitor sees it; addresses of rings come in these terms.
    pub(crate) user: u64,
    /// Bytes.
    pub(crate) len: u64,
    /// Where it begins in its file.
    pub(crate) offset: u64,
}

struct Region {
    described: Described,
    /// How often it was added. QEMU 7.2 adds and removes each region for each pair of rings.
    times: u32,
    // Before the mapping: a guard must not outlive what it guards.
    guard: Arc<Guard>,
    mapping: Arc<GuestRegionMmap>,
}

impl Region {
    /// Whether it lies in that file.
    fn is_of(&self, file: &File) -> Result<bool, MemoryError> {
        let Some(own) = self.mapping.file_offset() else { return Ok(false) };
        let own = own.file().metadata().map_err(MapError::File)?;
        let other = file.metadata().map_err(MapError::File)?;
        Ok((own.dev(), own.ino()) == (other.dev(), other.ino()))
    }
}

/// All regions of one guest.
#[derive(Default)]
pub(crate) struct Memory {
    regions: Vec<Region>,
    shared: Option<Shared>,
}

/// The memory as rings use it; it stays mapped as long as this lives.
#[derive(Clone)]
pub(crate) struct Shared {
    guards: Vec<Arc<Guard>>,
    pub(crate) map: Arc<GuestMemoryMmap>,
}

impl Shared {
    /// Memory that is no monitor's, and so cannot be cut.
    pub(crate) fn unguarded(map: Arc<GuestMemoryMmap>) -> Self {
        Self { guards: Vec::new(), map }
    }

    /// Whether a file behind it was cut short: its content is lost.
    pub(crate) fn was_cut(&self) -> bool {
        self.guards.iter().any(|guard| guard.was_hit())
    }

    /// The guest's last address in it.
    pub(crate) fn last_address(&self) -> u64 {
        self.map.last_addr().0
    }
}

impl Memory {
    /// Replaces everything.
    pub(crate) fn replace(
        &mut self,
        regions: impl ExactSizeIterator<Item = (Described, File)>,
    ) -> Result<(), MemoryError> {
        if regions.len() > MAX_REGIONS {
            return Err(MemoryError::TooMany);
        }
        self.regions =
            regions.map(|(described, file)| map(described, file)).collect::<Result<_, _>>()?;
        self.assemble()
    }

    /// Adds one region. The same of the same file may be added again, and is there until it was removed as often.
    pub(crate) fn add(&mut self, described: Described, file: File) -> Result<(), MemoryError> {
        if let Some(known) = self.regions.iter_mut().find(|known| known.described == described) {
            if !known.is_of(&file)? {
                return Err(MemoryError::Overlap);
            }
            known.times = known.times.checked_add(1).ok_or(MemoryError::TooMany)?;
            return Ok(());
        }
        if self.regions.len() >= MAX_REGIONS {
            return Err(MemoryError::TooMany);
        }
        self.regions.push(map(described, file)?);
        self.assemble()
    }

    /// Removes the region at these addresses.
    pub(crate) fn remove(&mut self, described: Described) -> Result<(), MemoryError> {
        let same = |region: &Region| {
            let there = region.described;
            (there.guest, there.user, there.len) == (described.guest, described.user, described.len)
        };
        let at = self.regions.iter().position(same).ok_or(MemoryError::Unknown)?;
        self.regions[at].times -= 1;
        if self.regions[at].times > 0 {
            return Ok(());
        }
        self.regions.remove(at);
        self.assemble()
    }

    /// The memory for rings; `None` while there is none.
    pub(crate) fn shared(&self) -> Option<&Shared> {
        self.shared.as_ref()
    }

    /// Whether the region with that address begins with nothing but zeros. Memory that its monitor does not
    /// share looks like that from here, while the guest writes to copies of its own; a guest that has come
    /// far enough to set up a ring has its kernel there.
    pub(crate) fn is_blank(&self, guest: u64) -> bool {
        let holds = |region: &&Region| {
            let offset = guest.checked_sub(region.described.guest);
            offset.is_some_and(|offset| offset < region.described.len)
        };
        let region = self.regions.iter().find(holds);
        let file = region.and_then(|region| Some((region, region.mapping.file_offset()?)));
        let Some((region, file)) = file else { return false };
        // Read, not mapped: reading a hole through a mapping would fill it.
        let mut chunk = vec![0; 64 << 10];
        let mut at = 0;
        while at < region.described.len.min(BLANK) {
            match file.file().read_at(&mut chunk, file.start() + at) {
                Ok(0) => break,
                Ok(len) if chunk[..len].iter().all(|byte| *byte == 0) => at += len as u64,
                _ => return false,
            }
        }
        true
    }

    /// The guest's address of what the monitor sees at `user`.
    pub(crate) fn translate(&self, user: u64) -> Option<u64> {
        self.regions.iter().find_map(|region| {
            let offset = user.checked_sub(region.described.user)?;
            (offset < region.described.len).then(|| region.described.guest + offset)
        })
    }

    fn assemble(&mut self) -> Result<(), MemoryError> {
        self.shared = None;
        self.regions.sort_by_key(|region| region.described.guest);
        if self.regions.is_empty() {
            return Ok(());
        }
        let mappings = self.regions.iter().map(|region| Arc::clone(&region.mapping)).collect();
        let map = GuestMemoryMmap::from_arc_regions(mappings).map_err(|_| MemoryError::Overlap)?;
        let guards = self.regions.iter().map(|region| Arc::clone(&region.guard)).collect();
        self.shared = Some(Shared { guards, map: Arc::new(map) });
        Ok(())
    }
}

fn map(described: Described, file: File) -> Result<Region, MemoryError> {
    let Described { guest, user, len, offset } = described;
    if guest.checked_add(len).is_none() || user.checked_add(len).is_none() {
        return Err(MapError::Range.into());
    }
    let (guard, mapping) = mapping::map(file, offset, len)?;
    let mapping = GuestRegionMmap::new(mapping, GuestAddress(guest)).ok_or(MapError::Range)?;
    Ok(Region { described, times: 1, guard: Arc::new(guard), mapping: Arc::new(mapping) })
}
