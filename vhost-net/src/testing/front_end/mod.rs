//! A monitor without a guest: it speaks vhost-user over a socket, with memory in a file that it shares, and
//! plays the guest's driver on all rings. It sends what it is told, valid or not.

pub mod messages;
pub mod rings;

use std::fs::File;
use std::io::{self, IoSlice, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use vm_memory::{Bytes as _, FileOffset, GuestAddress, GuestMemoryMmap};

use self::messages::{
    ADD_MEM_REG, GET_FEATURES, GET_PROTOCOL_FEATURES, GET_QUEUE_NUM, GET_VRING_BASE, SET_FEATURES,
    SET_LOG_BASE, SET_MEM_TABLE, SET_OWNER, SET_PROTOCOL_FEATURES, SET_VRING_ADDR, SET_VRING_BASE,
    SET_VRING_CALL, SET_VRING_ENABLE, SET_VRING_KICK, SET_VRING_NUM, log, message, pair, region,
};
use self::rings::{SIZE, logged_ring_address, ring_address};

/// Bytes of memory.
pub const MEMORY: u64 = 0x40_0000;
/// Where the monitor says that it sees the memory.
pub const USER: u64 = 0x7000_0000_0000;
/// Rings that there is memory for.
const RINGS: usize = 8;

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
}

fn number_of(ring: usize) -> u32 {
    u32::try_from(ring).expect("eight rings")
}
