//! Files that a monitor shares, mapped: what of them is there when they are mapped, and guarded from then on.

use std::fs::File;

use vm_memory::mmap::MmapRegionError;
use vm_memory::{FileOffset, MmapRegion};

use crate::sigbus::Guard;

/// Why a file was not mapped; the monitor's fault. Whoever wants it mapped says in front of this what it is.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MapError {
    #[error("is empty or wraps around")]
    Range,
    #[error("goes beyond its file")]
    BeyondFile,
    #[error("is of a file that cannot be looked at: {0}")]
    File(std::io::Error),
    #[error("cannot be mapped: {0}")]
    Map(#[from] MmapRegionError),
    #[error("cannot be guarded: {0}")]
    Guard(std::io::Error),
}

/// Maps `len` bytes from `offset` on, which must be a multiple of the processor's pages. The guard must be dropped before
/// the mapping is.
pub(crate) fn map(file: File, offset: u64, len: u64) -> Result<(Guard, MmapRegion), MapError> {
    let end = offset.checked_add(len).filter(|_| len > 0).ok_or(MapError::Range)?;
    let size = usize::try_from(len).map_err(|_| MapError::Range)?;
    // Mapping more than there is succeeds, and fails when it is used.
    if file.metadata().map_err(MapError::File)?.len() < end {
        return Err(MapError::BeyondFile);
    }
    let mapping = MmapRegion::from_file(FileOffset::new(file, offset), size)?;
    let guard = Guard::new(mapping.as_ptr(), size).map_err(MapError::Guard)?;
    Ok((guard, mapping))
}
