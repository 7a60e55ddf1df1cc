//! Following a chain of descriptors, direct and indirect, within bounds.

use super::access::{DESCRIPTOR_LEN, GuestAccess};
use super::error::RingError;
use super::{Direction, Tables};

pub(super) const NEXT: u16 = 1;
pub(super) const WRITE: u16 = 2;
pub(super) const INDIRECT: u16 = 4;
/// The most descriptors that one frame may take us to read, and the longest indirect table. Drivers use some
/// twenty.
pub(super) const MAX_STEPS: u32 = 1024;

/// What one frame may still cost.
pub(super) struct Budget {
    /// Descriptors to read.
    pub(super) steps: u32,
    /// The longest chain in bytes.
    pub(super) bytes: usize,
}

/// Collects the buffers of the chain at `head`, and returns how many bytes they hold.
pub(super) fn follow(
    memory: &mut GuestAccess,
    tables: Tables,
    head: u16,
    direction: Direction,
    budget: &mut Budget,
) -> Result<usize, RingError> {
    let mut entries = memory.open_ring();
    let mut is_direct = true;
    let mut at = u32::from(head);
    let mut steps = 0;
    let mut total = 0_usize;
    loop {
        if steps == entries {
            return Err(RingError::Loop);
        }
        steps += 1;
        budget.steps = budget.steps.checked_sub(1).ok_or(RingError::Length)?;
        let found = memory.descriptor(at);
        if found.flags & INDIRECT != 0 {
            if !is_direct || tables == Tables::Refused || found.flags & NEXT != 0 {
                return Err(RingError::Indirect);
            }
            entries = open_table(memory, found.address, found.len)?;
            (is_direct, at, steps) = (false, 0, 0);
            continue;
        }
        if (found.flags & WRITE != 0) != (direction == Direction::ToGuest) {
            return Err(RingError::Direction);
        }
        if found.len > 0 {
            let len = found.len as usize;
            memory.collect(found.address, len).ok_or(RingError::Address)?;
            total = total.checked_add(len).ok_or(RingError::Length)?;
            if total > budget.bytes {
                return Err(RingError::Length);
            }
        }
        if found.flags & NEXT == 0 {
            return Ok(total);
        }
        at = u32::from(found.next);
        if at >= entries {
            return Err(RingError::Next);
        }
    }
}

fn open_table(memory: &mut GuestAccess, address: u64, len: u32) -> Result<u32, RingError> {
    const ENTRY: u32 = DESCRIPTOR_LEN as u32;
    let entries = len / ENTRY;
    if len == 0 || !len.is_multiple_of(ENTRY) || entries > MAX_STEPS {
        return Err(RingError::Indirect);
    }
    memory.open_table(address, entries).ok_or(RingError::Indirect)?;
    Ok(entries)
}
