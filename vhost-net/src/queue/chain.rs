//! Following a chain of descriptors, direct and indirect, within bounds.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::Tables;
use super::error::RingError;
use super::layout::{Layout, lies_within};

const DESCRIPTOR_LEN: u64 = 16;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// The longest indirect table. Drivers use some twenty entries.
const MAX_TABLE: u32 = 1024;

/// Who a buffer is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    FromGuest,
    ToGuest,
}

/// A buffer that lies in guest memory.
#[derive(Clone, Copy)]
pub(super) struct Part {
    pub(super) address: GuestAddress,
    pub(super) len: usize,
}

/// One table of descriptors: the ring's own, or an indirect one.
struct Table {
    address: u64,
    entries: u32,
}

/// Appends the buffers of the chain at `head` to `parts`, and returns how many bytes they hold.
pub(super) fn follow(
    memory: &GuestMemoryMmap,
    layout: &Layout,
    tables: Tables,
    head: u16,
    direction: Direction,
    parts: &mut Vec<Part>,
) -> Result<usize, RingError> {
    let mut table = Table { address: layout.descriptors.0, entries: u32::from(layout.size) };
    let mut is_direct = true;
    let mut at = head;
    let mut steps = 0;
    let mut total = 0_usize;
    loop {
        if steps == table.entries {
            return Err(RingError::Loop);
        }
        steps += 1;
        // One read: what is judged is what is used.
        let mut bytes = [0; DESCRIPTOR_LEN as usize];
        let address = table.address + u64::from(at) * DESCRIPTOR_LEN;
        memory.read_slice(&mut bytes, GuestAddress(address)).map_err(|_| RingError::Address)?;
        let (fields, tail) = bytes.split_at(12);
        let (address, len) = fields.split_at(8);
        let address = u64::from_le_bytes(address.try_into().expect("split at eight"));
        let len = u32::from_le_bytes(len.try_into().expect("twelve less eight"));
        let flags = u16::from_le_bytes([tail[0], tail[1]]);
        let next = u16::from_le_bytes([tail[2], tail[3]]);
        if flags & INDIRECT != 0 {
            if !is_direct || tables == Tables::Refused || flags & NEXT != 0 {
                return Err(RingError::Indirect);
            }
            table = indirect_table(memory, address, len)?;
            (is_direct, at, steps) = (false, 0, 0);
            continue;
        }
        if (flags & WRITE != 0) != (direction == Direction::ToGuest) {
            return Err(RingError::Direction);
        }
        if len > 0 {
            let len = len as usize;
            if !lies_within(memory, address, len) {
                return Err(RingError::Address);
            }
            total = total.checked_add(len).ok_or(RingError::Length)?;
            parts.push(Part { address: GuestAddress(address), len });
        }
        if flags & NEXT == 0 {
            return Ok(total);
        }
        if u32::from(next) >= table.entries {
            return Err(RingError::Next);
        }
        at = next;
    }
}

fn indirect_table(memory: &GuestMemoryMmap, address: u64, len: u32) -> Result<Table, RingError> {
    let entries = len / DESCRIPTOR_LEN as u32;
    if len == 0 || !len.is_multiple_of(DESCRIPTOR_LEN as u32) || entries > MAX_TABLE {
        return Err(RingError::Indirect);
    }
    if !lies_within(memory, address, len as usize) {
        return Err(RingError::Indirect);
    }
    Ok(Table { address, entries })
}
