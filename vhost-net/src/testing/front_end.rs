//! A monitor without a guest: it speaks vhost-user over a socket, with memory in a file that it shares, and
//! plays the guest's driver on all rings. It sends what it is told, valid or not.

use std::fs::File;
use std::io::{self, IoSlice, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use vm_memory::{Bytes as _, FileOffset, GuestAddress, GuestMemoryMmap};

/// Bytes of memory.
pub const MEMORY: u64 = 0x40_0000;
/// Where the monitor says that it sees the memory.
pub const USER: u64 = 0x7000_0000_0000;
/// Descriptors of each ring.
pub const SIZE: u16 = 64;
/// Bytes of each buffer.
const BUFFER: u64 = 2048;
/// Rings that there is memory for.
const RINGS: usize = 8;
/// Where a ring's available and used ring lie, from its own start.
const AVAILABLE: u64 = 0x4000;
const USED: u64 = 0x8000;

/// What a driver without segmentation agrees to: VERSION_1, PROTOCOL_FEATURES, EVENT_IDX, INDIRECT_DESC, MRG_RXBUF,
/// GUEST_CSUM, CSUM.
pub const FEATURES: u64 = 1 << 32 | 1 << 30 | 1 << 29 | 1 << 28 | 1 << 15 | 1 << 1 | 1;
/// The same and all segmentation of TCP, each way and with both families.
pub const WITH_TSO: u64 = FEATURES | 1 << 7 | 1 << 8 | 1 << 11 | 1 << 12;
/// The same and that of UDP: GUEST_USO4, GUEST_USO6, HOST_USO.
pub const WITH_USO: u64 = WITH_TSO | 1 << 54 | 1 << 55 | 1 << 56;

/// What a monitor agrees to on top while it migrates its guest: LOG_ALL.
pub const LOG_ALL: u64 = 1 << 26;

/// What QEMU agrees to of the protocol: MQ, LOG_SHMFD, RARP, REPLY_ACK.
const QEMUS_PROTOCOL: u64 = 1 | 1 << 1 | 1 << 2 | 1 << 3;

/// The first ring to the guest, and the first from it; those of the next pair are two further.
pub const TO_GUEST: usize = 0;
/// See [`TO_GUEST`].
pub const FROM_GUEST: usize = 1;

/// A connection and the memory behind it.
pub struct FrontEnd {
    stream: UnixStream,
    file: File,
    memory: GuestMemoryMmap,
    kicks: Vec<Arc<OwnedFd>>,
    calls: Vec<Arc<OwnedFd>>,
    available: [u16; RINGS],
    seen: [u16; RINGS],
    pairs: usize,
    features: u64,
}

impl FrontEnd {
    /// Connects, and says nothing yet.
    pub fn connect(socket: &Path) -> io::Result<Self> {
        Self::over(UnixStream::connect(socket)?)
    }

    /// The same over a connection that is there.
    pub fn over(stream: UnixStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC)?);
        ftruncate(&file, MEMORY)?;
        let len = usize::try_from(MEMORY).expect("four MiB");
        let offset = FileOffset::new(file.try_clone()?, 0);
        let ranges = [(GuestAddress(0), len, Some(offset))];
        let memory = GuestMemoryMmap::from_ranges_with_files(ranges).map_err(io::Error::other)?;
        // A trace of a kernel, as any guest has.
        memory.write_slice(b"kernel", GuestAddress(0)).map_err(io::Error::other)?;
        let event = || -> io::Result<Arc<OwnedFd>> {
            Ok(Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
        };
        Ok(Self {
            stream,
            file,
            memory,
            kicks: (0..RINGS).map(|_| event()).collect::<io::Result<_>>()?,
            calls: (0..RINGS).map(|_| event()).collect::<io::Result<_>>()?,
            available: [0; RINGS],
            seen: [0; RINGS],
            pairs: 1,
            features: FEATURES,
        })
    }

    /// Agrees to these features when it is set up, instead of [`FEATURES`].
    pub fn agree_to(&mut self, features: u64) {
        self.features = features;
    }

    /// Has that many pairs of rings when it is set up, instead of one.
    pub fn have_pairs(&mut self, pairs: usize) {
        self.pairs = pairs;
    }

    /// The file that holds the memory.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The memory.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// Sends a message with any header.
    pub fn send_raw(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(fds));
        }
        let flags = SendFlags::NOSIGNAL;
        sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut ancillary, flags)?;
        Ok(())
    }

    /// Sends a message.
    pub fn send(&self, request: u32, body: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.send_raw(&message(request, body), fds)
    }

    /// Sends a message and waits for the answer's body.
    pub fn ask(&mut self, request: u32, body: &[u8]) -> io::Result<Vec<u8>> {
        self.ask_with(request, body, &[])
    }

    /// The same with descriptors.
    pub fn ask_with(
        &mut self,
        request: u32,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> io::Result<Vec<u8>> {
        self.send(request, body, fds)?;
        let mut header = [0; 12];
        self.stream.read_exact(&mut header)?;
        let len = u32::from_ne_bytes(header[8..].try_into().expect("four bytes"));
        let mut body = vec![0; usize::try_from(len).expect("a u32 fits")];
        self.stream.read_exact(&mut body)?;
        Ok(body)
    }

    /// Sends a message that wants a word about it, and answers what that was: zero when it was done. Both must
    /// have agreed on REPLY_ACK.
    pub fn ask_whether_done(&mut self, request: u32, body: &[u8]) -> io::Result<u64> {
        let mut bytes = message(request, body);
        bytes[4] |= 8;
        self.send_raw(&bytes, &[])?;
        let mut answer = [0; 20];
        self.stream.read_exact(&mut answer)?;
        Ok(u64::from_ne_bytes(answer[12..].try_into().expect("eight bytes")))
    }

    /// Whether the device closes the connection, which it is waited for.
    pub fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => true,
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        }
    }

    /// Everything in the order in which QEMU says it: the first pair is enabled before features are agreed on. Of
    /// more pairs the others are there and not enabled, until the guest wants that.
    pub fn set_up_like_qemu(&mut self) -> io::Result<()> {
        self.ask(GET_FEATURES, &[])?;
        self.ask(GET_PROTOCOL_FEATURES, &[])?;
        self.send(SET_PROTOCOL_FEATURES, &QEMUS_PROTOCOL.to_ne_bytes(), &[])?;
        self.ask(GET_QUEUE_NUM, &[])?;
        self.send(SET_OWNER, &[], &[])?;
        for ring in [0, 1] {
            self.send(SET_VRING_ENABLE, &pair(ring, 1), &[])?;
        }
        self.send(SET_FEATURES, &self.features.to_ne_bytes(), &[])?;
        self.set_memory()?;
        for ring in 0..2 * self.pairs {
            self.set_up_ring(ring)?;
        }
        self.barrier()
    }

    /// Switches a ring on, or off.
    pub fn enable(&mut self, ring: usize, enable: u32) -> io::Result<()> {
        self.send(SET_VRING_ENABLE, &pair(number_of(ring), enable), &[])?;
        self.barrier()
    }

    /// Everything in the order in which cloud-hypervisor says it: regions one by one, enabled last.
    pub fn set_up_like_cloud_hypervisor(&mut self) -> io::Result<()> {
        self.send(SET_OWNER, &[], &[])?;
        self.ask(GET_FEATURES, &[])?;
        self.send(SET_FEATURES, &self.features.to_ne_bytes(), &[])?;
        self.ask(GET_PROTOCOL_FEATURES, &[])?;
        self.send(SET_PROTOCOL_FEATURES, &(1_u64 | 1 << 3 | 1 << 15).to_ne_bytes(), &[])?;
        let mut body = vec![0; 8];
        body.extend_from_slice(&region(0, MEMORY, USER, 0));
        self.send(ADD_MEM_REG, &body, &[self.file.as_fd()])?;
        for ring in 0..2 * self.pairs {
            self.set_up_ring(ring)?;
        }
        for ring in 0..2 * self.pairs {
            self.send(SET_VRING_ENABLE, &pair(number_of(ring), 1), &[])?;
        }
        self.barrier()
    }

    /// Shares the memory as one region.
    pub fn set_memory(&self) -> io::Result<()> {
        let mut body = pair(1, 0);
        body.extend_from_slice(&region(0, MEMORY, USER, 0));
        self.send(SET_MEM_TABLE, &body, &[self.file.as_fd()])
    }

    /// Says where a ring lies, and starts it where it was.
    pub fn set_up_ring(&self, ring: usize) -> io::Result<()> {
        let index = number_of(ring);
        self.send(SET_VRING_NUM, &pair(index, SIZE.into()), &[])?;
        self.send(SET_VRING_BASE, &pair(index, self.available[ring].into()), &[])?;
        self.send(SET_VRING_ADDR, &ring_address(index), &[])?;
        let number = u64::from(index).to_ne_bytes();
        self.send(SET_VRING_KICK, &number, &[self.kicks[ring].as_fd()])?;
        self.send(SET_VRING_CALL, &number, &[self.calls[ring].as_fd()])
    }

    /// Gives a log of written pages: `len` bytes from `offset` on. Nothing is logged before [`FrontEnd::log_writes`].
    pub fn give_log(&mut self, file: &File, len: u64, offset: u64) -> io::Result<()> {
        let answer = self.ask_with(SET_LOG_BASE, &log(len, offset), &[file.as_fd()])?;
        if answer == log(len, offset) { Ok(()) } else { Err(io::Error::other("another answer")) }
    }

    /// Has what is written to the buffers logged, and to the used rings that have somewhere for it.
    pub fn log_writes(&mut self, used: &[(usize, u64)]) -> io::Result<()> {
        self.send(SET_FEATURES, &(self.features | LOG_ALL).to_ne_bytes(), &[])?;
        for (ring, at) in used {
            self.send(SET_VRING_ADDR, &logged_ring_address(number_of(*ring), *at), &[])?;
        }
        self.barrier()
    }

    /// Takes that back.
    pub fn end_log(&mut self) -> io::Result<()> {
        self.send(SET_FEATURES, &self.features.to_ne_bytes(), &[])?;
        self.barrier()
    }

    /// Returns when everything that was sent has been handled.
    pub fn barrier(&mut self) -> io::Result<()> {
        self.ask(GET_FEATURES, &[]).map(|_| ())
    }

    /// Stops a ring; answers where it stands.
    pub fn stop_ring(&mut self, ring: usize) -> io::Result<u32> {
        let index = number_of(ring);
        let body = self.ask(GET_VRING_BASE, &pair(index, 0))?;
        Ok(u32::from_ne_bytes(body[4..8].try_into().expect("four bytes")))
    }

    /// Sends a frame, virtio-net header in front, and kicks.
    pub fn transmit(&mut self, frame: &[u8]) {
        self.transmit_on(FROM_GUEST, frame);
    }

    /// The same on any ring.
    pub fn transmit_on(&mut self, ring: usize, frame: &[u8]) {
        let slot = self.available[ring] & (SIZE - 1);
        let buffer = buffer_address(ring, slot);
        self.write(buffer, frame);
        self.offer(ring, slot, buffer, u32::try_from(frame.len()).expect("a frame"), 0);
    }

    /// Gives the device room for `count` frames, and kicks.
    pub fn post(&mut self, count: u16) {
        self.post_on(TO_GUEST, count);
    }

    /// The same on any ring.
    pub fn post_on(&mut self, ring: usize, count: u16) {
        for _ in 0..count {
            let slot = self.available[ring] & (SIZE - 1);
            let buffer = buffer_address(ring, slot);
            let len = u32::try_from(BUFFER).expect("2048");
            self.offer(ring, slot, buffer, len, 2);
        }
    }

    /// How often the device was given room for a frame.
    pub fn posted(&self) -> u16 {
        self.available[TO_GUEST]
    }

    /// Makes one descriptor available, and kicks.
    pub fn offer(&mut self, ring: usize, slot: u16, address: u64, len: u32, flags: u16) {
        let mut descriptor = address.to_le_bytes().to_vec();
        descriptor.extend_from_slice(&len.to_le_bytes());
        descriptor.extend_from_slice(&flags.to_le_bytes());
        descriptor.extend_from_slice(&[0; 2]);
        self.write(start(ring) + 16 * u64::from(slot), &descriptor);
        let at = start(ring) + AVAILABLE + 4 + 2 * u64::from(self.available[ring] & (SIZE - 1));
        self.write(at, &slot.to_le_bytes());
        self.set_available(ring, self.available[ring].wrapping_add(1));
    }

    /// Sets an available index to anything, and kicks.
    pub fn set_available(&mut self, ring: usize, index: u16) {
        self.available[ring] = index;
        let at = GuestAddress(start(ring) + AVAILABLE + 2);
        self.memory.store(index.to_le(), at, Ordering::Release).expect("inside");
        let _ = rustix::io::write(&*self.kicks[ring], &1u64.to_ne_bytes());
    }

    /// How many descriptors of a ring came back since this was asked last.
    pub fn used(&mut self, ring: usize) -> u16 {
        let at = GuestAddress(start(ring) + USED + 2);
        let index: u16 = self.memory.load(at, Ordering::Acquire).expect("inside");
        let new = u16::from_le(index).wrapping_sub(self.seen[ring]);
        self.seen[ring] = u16::from_le(index);
        new
    }

    /// The frame in the buffer that was posted `number`th.
    pub fn received(&self, number: u16, len: usize) -> Vec<u8> {
        self.received_on(TO_GUEST, number, len)
    }

    /// The same on any ring.
    pub fn received_on(&self, ring: usize, number: u16, len: usize) -> Vec<u8> {
        let mut frame = vec![0; len];
        let at = buffer_address(ring, number);
        self.memory.read_slice(&mut frame, GuestAddress(at)).expect("inside");
        frame
    }

    /// How often the device has called for a ring since this was asked last.
    pub fn calls(&self, ring: usize) -> u64 {
        let mut count = [0; 8];
        rustix::io::ioctl_fionbio(&*self.calls[ring], true).expect("an eventfd");
        match rustix::io::read(&*self.calls[ring], &mut count) {
            Ok(_) => u64::from_ne_bytes(count),
            Err(_) => 0,
        }
    }

    /// Wants to be called for the next descriptor that comes back.
    pub fn want_call(&self, ring: usize) {
        let wish = start(ring) + AVAILABLE + 4 + 2 * u64::from(SIZE);
        self.write(wish, &self.seen[ring].to_le_bytes());
    }

    /// Makes a ring's call as full as a writer can make it, and has the next writer wait: the flag is shared by
    /// all who have the descriptor.
    pub fn fill_call(&self, ring: usize) {
        let most = (u64::MAX - 1).to_ne_bytes();
        rustix::io::write(&*self.calls[ring], &most).expect("it was empty");
        rustix::io::ioctl_fionbio(&*self.calls[ring], false).expect("an eventfd");
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).expect("inside");
    }
}

/// Where the buffer lies that is posted `number`th on a ring.
pub fn buffer_address(ring: usize, number: u16) -> u64 {
    buffers(ring) + u64::from(number & (SIZE - 1)) * BUFFER
}

/// Where a ring's used ring lies.
pub fn used_address(ring: usize) -> u64 {
    start(ring) + USED
}

/// Where a ring's descriptors lie.
fn start(ring: usize) -> u64 {
    0x1_0000 * (ring as u64 + 1)
}

/// Where its buffers begin: the first of those to the guest at one MiB, of those from it at two.
fn buffers(ring: usize) -> u64 {
    let (pair, direction) = (ring as u64 / 2, ring as u64 % 2);
    0x10_0000 * (direction + 1) + u64::from(SIZE) * BUFFER * pair
}

fn number_of(ring: usize) -> u32 {
    u32::try_from(ring).expect("eight rings")
}

/// A message with a valid header.
pub fn message(request: u32, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len()).expect("messages are short");
    let mut bytes: Vec<u8> = [request, 1, len].into_iter().flat_map(u32::to_ne_bytes).collect();
    bytes.extend_from_slice(body);
    bytes
}

/// The body of most messages: a ring and a number.
pub fn pair(ring: u32, number: u32) -> Vec<u8> {
    [ring, number].into_iter().flat_map(u32::to_ne_bytes).collect()
}

/// One region of memory as messages describe it.
pub fn region(guest: u64, len: u64, user: u64, offset: u64) -> Vec<u8> {
    [guest, len, user, offset].into_iter().flat_map(u64::to_ne_bytes).collect()
}

/// The body of `SET_VRING_ADDR` for a ring where it belongs.
pub fn ring_address(ring: u32) -> Vec<u8> {
    let start = USER + start(usize::try_from(ring & 7).expect("three bits"));
    let mut body = pair(ring, 0);
    for address in [start, start + USED, start + AVAILABLE, 0] {
        body.extend_from_slice(&address.to_ne_bytes());
    }
    body
}

/// The same for a ring whose used ring is to be logged as if it lay at `log`.
pub fn logged_ring_address(ring: u32, log: u64) -> Vec<u8> {
    let mut body = ring_address(ring);
    body[4] = 1;
    body[32..].copy_from_slice(&log.to_ne_bytes());
    body
}

/// The body of `SET_LOG_BASE`.
pub fn log(len: u64, offset: u64) -> Vec<u8> {
    [len, offset].into_iter().flat_map(u64::to_ne_bytes).collect()
}

// Messages by their number in the vhost-user specification.
/// `GET_FEATURES`.
pub const GET_FEATURES: u32 = 1;
/// `SET_FEATURES`.
pub const SET_FEATURES: u32 = 2;
/// `SET_OWNER`.
pub const SET_OWNER: u32 = 3;
/// `SET_MEM_TABLE`.
pub const SET_MEM_TABLE: u32 = 5;
/// `SET_LOG_BASE`.
pub const SET_LOG_BASE: u32 = 6;
/// `SET_LOG_FD`.
pub const SET_LOG_FD: u32 = 7;
/// `SET_VRING_NUM`.
pub const SET_VRING_NUM: u32 = 8;
/// `SET_VRING_ADDR`.
pub const SET_VRING_ADDR: u32 = 9;
/// `SET_VRING_BASE`.
pub const SET_VRING_BASE: u32 = 10;
/// `GET_VRING_BASE`.
pub const GET_VRING_BASE: u32 = 11;
/// `SET_VRING_KICK`.
pub const SET_VRING_KICK: u32 = 12;
/// `SET_VRING_CALL`.
pub const SET_VRING_CALL: u32 = 13;
/// `GET_PROTOCOL_FEATURES`.
pub const GET_PROTOCOL_FEATURES: u32 = 15;
/// `SET_PROTOCOL_FEATURES`.
pub const SET_PROTOCOL_FEATURES: u32 = 16;
/// `GET_QUEUE_NUM`.
pub const GET_QUEUE_NUM: u32 = 17;
/// `SET_VRING_ENABLE`.
pub const SET_VRING_ENABLE: u32 = 18;
/// `SEND_RARP`.
pub const SEND_RARP: u32 = 19;
/// `GET_INFLIGHT_FD`.
pub const GET_INFLIGHT_FD: u32 = 31;
/// `SET_INFLIGHT_FD`.
pub const SET_INFLIGHT_FD: u32 = 32;
/// `ADD_MEM_REG`.
pub const ADD_MEM_REG: u32 = 37;
/// `REM_MEM_REG`.
pub const REM_MEM_REG: u32 = 38;
