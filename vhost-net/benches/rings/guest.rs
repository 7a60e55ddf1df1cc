//! The driver of both rings, fast enough not to be what is measured.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use lichen_vhost_net::fetch;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileSlice};

pub(super) const SIZE: u16 = 256;
pub(super) const BATCH: usize = 64;
const MEMORY: usize = 0x200_0000;
const MASK: u16 = SIZE - 1;
/// Where the parts of each ring lie, and what it uses.
pub(super) const SENDER: Places = Places { descriptors: 0, available: 0x8000, used: 0xc000 };
pub(super) const RECEIVER: Places =
    Places { descriptors: 0x1_0000, available: 0x1_8000, used: 0x1_c000 };
/// The other ring of each port, which stays empty.
pub(super) const SENDER_RECEIVES: Places =
    Places { descriptors: 0x2_0000, available: 0x2_8000, used: 0x2_c000 };
pub(super) const RECEIVER_SENDS: Places =
    Places { descriptors: 0x3_0000, available: 0x3_8000, used: 0x3_c000 };
const TABLES: usize = 0x10_0000;
const TABLE: usize = 0x200;
const SENT: usize = 0x20_0000;
const RECEIVED: usize = 0x180_0000;
const HEADER: usize = 12;
/// How many frames ahead a buffer is fetched from the device's processor, as the device does.
const AHEAD: u16 = 8;
const LINE: usize = 64;
/// Number and length, behind the headers of a frame.
const STAMP: usize = 12;
/// Ethernet, IPv4 and UDP; of a frame that stands for several, TCP.
const UDP: usize = 42;
const TCP: usize = 54;
/// Addresses of the two ports: the last byte of each.
pub(super) const ENDS: [u8; 2] = [2, 3];

/// Offsets into guest memory.
#[derive(Clone, Copy)]
pub(super) struct Places {
    pub(super) descriptors: usize,
    pub(super) available: usize,
    pub(super) used: usize,
}

/// What the guest sends, and the buffers that it posts.
#[derive(Clone, Copy)]
pub(super) struct Load {
    pub(super) name: &'static str,
    pub(super) frame_len: usize,
    /// Frames under way, at most as many as the posted buffers hold.
    depth: u16,
    /// How far apart the frames lie: as the slabs of Linux have it, and pages for the largest.
    stride: usize,
    /// As Linux posts them, one behind the other: 1536 bytes, or a page where frames are large.
    buffer_len: u32,
}

pub(super) const LOADS: [Load; 3] = [
    Load { name: "64 B", frame_len: 64, depth: SIZE, stride: 704, buffer_len: 1536 },
    Load { name: "1500 B", frame_len: 1500, depth: SIZE, stride: 2048, buffer_len: 1536 },
    Load { name: "64 KiB", frame_len: 0x1_0000, depth: 8, stride: 0x1_1000, buffer_len: 4096 },
];

/// The guest's side of both rings.
pub(super) struct Guest<'a> {
    memory: VolatileSlice<'a>,
    load: Load,
    /// The virtio-net header and the headers of each frame, with room for the stamp.
    front: Vec<u8>,
    /// Indices of the ring on which it sends, and of the one on which it receives.
    sent: u16,
    returned: u16,
    posted: u16,
    received: u16,
    next_number: u64,
    expected: u64,
}

pub(super) fn memory() -> Arc<GuestMemoryMmap> {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]);
    Arc::new(memory.expect("32 MiB"))
}

impl<'a> Guest<'a> {
    pub(super) fn new(memory: &'a GuestMemoryMmap, load: Load) -> Self {
        let slice = memory.get_slice(GuestAddress(0), MEMORY).expect("all of it");
        let (sent, returned, posted, received) = (0, 0, 0, 0);
        let (next_number, expected) = (0, 0);
        let mut guest = Self {
            memory: slice,
            load,
            front: front(load),
            sent,
            returned,
            posted,
            received,
            next_number,
            expected,
        };
        for at in 0..SIZE {
            guest.describe_sent(at);
            let (ring, len) = (RECEIVER.descriptors, load.buffer_len);
            guest.describe(ring, at, (guest.received_at(at), len, 2, 0));
            guest.put16(RECEIVER.available + 4 + 2 * usize::from(at), at);
        }
        guest.posted = SIZE;
        guest.show(RECEIVER, SIZE);
        guest
    }

    /// Takes what came, and sends as much as a batch. Answers how many frames came.
    pub(super) fn turn(&mut self) -> u64 {
        let came = self.take();
        self.send();
        came
    }

    fn send(&mut self) {
        self.returned = self.index(SENDER.used + 2);
        let under_way = (self.next_number - self.expected) as u16;
        let room = self.load.depth - under_way.max(self.sent.wrapping_sub(self.returned));
        let now = room.min(BATCH as u16);
        for _ in 0..now {
            let head = self.sent_head(0);
            self.lines_at(self.sent_at(self.sent_head(AHEAD))).for_each(fetch::to_write);
            let stamp = self.front.len() - STAMP;
            self.front[stamp..stamp + 8].copy_from_slice(&self.next_number.to_le_bytes());
            self.memory.write_slice(&self.front, self.sent_at(head)).expect("inside");
            self.put16(SENDER.available + 4 + 2 * usize::from(self.sent & MASK), head);
            self.sent = self.sent.wrapping_add(1);
            self.next_number += 1;
        }
        if now > 0 {
            self.show(SENDER, self.sent);
        }
    }

    fn take(&mut self) -> u64 {
        let used = self.index(RECEIVER.used + 2);
        let came = self.expected;
        while self.received != used {
            if used.wrapping_sub(self.received) > AHEAD {
                let at = Self::used_at(self.received.wrapping_add(AHEAD));
                let head = self.get32(at) as u16 & MASK;
                self.lines_at(self.received_at(head)).for_each(fetch::to_read);
            }
            let buffers = self.check(self.head());
            // A device that publishes each buffer by itself lets half a frame be seen.
            if used.wrapping_sub(self.received) < buffers {
                break;
            }
            let mut left = self.load.frame_len + HEADER;
            for _ in 0..buffers {
                let head = self.head();
                left -= self.get32(Self::used_at(self.received) + 4) as usize;
                self.received = self.received.wrapping_add(1);
                // It was read, so it is posted again.
                self.put16(RECEIVER.available + 4 + 2 * usize::from(self.posted & MASK), head);
                self.posted = self.posted.wrapping_add(1);
            }
            assert_eq!(left, 0, "frame {} has another length", self.expected);
            self.expected += 1;
        }
        if self.expected != came {
            self.show(RECEIVER, self.posted);
        }
        self.expected - came
    }

    /// The head that came back next.
    fn head(&self) -> u16 {
        self.get32(Self::used_at(self.received)) as u16 & MASK
    }

    fn used_at(index: u16) -> usize {
        RECEIVER.used + 4 + 8 * usize::from(index & MASK)
    }

    /// Checks number and length of the frame in this buffer; answers over how many it is spread.
    fn check(&self, head: u16) -> u16 {
        let (mut header, mut stamp) = ([0; HEADER], [0; STAMP]);
        let at = self.received_at(head);
        self.memory.read_slice(&mut header, at).expect("inside");
        self.memory.read_slice(&mut stamp, at + self.front.len() - STAMP).expect("inside");
        let number = u64::from_le_bytes(stamp[..8].try_into().expect("eight"));
        let len = u32::from_le_bytes(stamp[8..].try_into().expect("four"));
        assert_eq!((number, len as usize), (self.expected, self.load.frame_len));
        u16::from_le_bytes([header[10], header[11]])
    }

    /// One buffer for a small frame; pages behind an indirect table for a large one.
    fn describe_sent(&mut self, head: u16) {
        let (address, len) = (self.sent_at(head), HEADER + self.load.frame_len);
        if len <= 4096 {
            return self.describe(SENDER.descriptors, head, (address, len as u32, 0, 0));
        }
        if head >= self.load.depth {
            return;
        }
        let table = TABLES + TABLE * usize::from(head);
        let pages = len.div_ceil(4096);
        for page in 0..pages {
            let at = 4096 * page;
            let flags = u16::from(page + 1 < pages);
            let part = (address + at, (len - at).min(4096) as u32, flags, page as u16 + 1);
            self.describe(table, page as u16, part);
        }
        self.describe(SENDER.descriptors, head, (table, 16 * pages as u32, 4, 0));
    }

    fn describe(&self, table: usize, at: u16, (address, len, flags, next): (usize, u32, u16, u16)) {
        let at = table + 16 * usize::from(at);
        let tail = u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48;
        self.memory.write_obj(address as u64, at).expect("inside");
        self.memory.write_obj(tail, at + 8).expect("inside");
    }

    fn show(&self, ring: Places, index: u16) {
        self.memory.store(index, ring.available + 2, Ordering::Release).expect("inside");
    }

    fn index(&self, at: usize) -> u16 {
        self.memory.load(at, Ordering::Acquire).expect("inside")
    }

    fn get32(&self, at: usize) -> u32 {
        self.memory.load(at, Ordering::Relaxed).expect("inside")
    }

    fn put16(&self, at: usize, value: u16) {
        self.memory.store(value, at, Ordering::Relaxed).expect("inside");
    }

    /// The head of the frame that is sent so many frames from now.
    fn sent_head(&self, ahead: u16) -> u16 {
        self.sent.wrapping_add(ahead) & MASK & (self.load.depth - 1)
    }

    /// The lines of the cache that hold the front of a frame.
    fn lines_at(&self, at: usize) -> impl Iterator<Item = *const u8> {
        let memory = self.memory.ptr_guard();
        let start = memory.as_ptr().wrapping_add(at);
        (0..self.front.len()).step_by(LINE).map(move |offset| start.wrapping_add(offset))
    }

    fn sent_at(&self, head: u16) -> usize {
        SENT + self.load.stride * usize::from(head)
    }

    fn received_at(&self, head: u16) -> usize {
        RECEIVED + self.load.buffer_len as usize * usize::from(head)
    }
}

/// What stands in front of each frame's payload: valid headers, so that the datapath carries it.
fn front(load: Load) -> Vec<u8> {
    let is_large = load.frame_len > 1514;
    let headers = if is_large { TCP } else { UDP };
    let mut front = vec![0; HEADER + headers + STAMP];
    if is_large {
        // A partial checksum of TCP at 34, 16 bytes in; segments of 1460 bytes.
        front[..10].copy_from_slice(&[1, 1, TCP as u8, 0, 0xb4, 5, 34, 0, 16, 0]);
    }
    let frame = &mut front[HEADER..];
    frame[..6].copy_from_slice(&[2, 0x4c, 10, 88, 0, ENDS[1]]);
    frame[6..12].copy_from_slice(&[2, 0x4c, 10, 88, 0, ENDS[0]]);
    frame[12..14].copy_from_slice(&[8, 0]);
    let ip_len = (load.frame_len - 14) as u16;
    let protocol = if is_large { 6 } else { 17 };
    frame[14..26].copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0]);
    frame[16..18].copy_from_slice(&ip_len.to_be_bytes());
    frame[26..34].copy_from_slice(&[10, 88, 0, ENDS[0], 10, 88, 0, ENDS[1]]);
    let sum: u32 =
        frame[14..34].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    frame[24..26].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    // Ports 1000 and 2000. UDP needs no checksum; TCP's is left to the receiver.
    frame[34..38].copy_from_slice(&[3, 0xe8, 7, 0xd0]);
    if is_large {
        frame[46..50].copy_from_slice(&[0x50, 0x10, 0xff, 0xff]);
    } else {
        frame[38..40].copy_from_slice(&(ip_len - 20).to_be_bytes());
    }
    let len = (load.frame_len as u32).to_le_bytes();
    let stamp = front.len() - STAMP;
    front[stamp + 8..].copy_from_slice(&len);
    front
}
