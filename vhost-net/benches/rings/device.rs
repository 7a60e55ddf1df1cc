//! Two devices that carry frames from the sending ring to the receiving one.

use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lichen_netstack::command::Attachment;
use lichen_netstack::counters::Counters;
use lichen_netstack::port::{MAX_FRAME, Offloads, Port, Receive, Transmit};
use lichen_netstack::switch::directory::{Directory, Location};
use lichen_netstack::testing::host::World;
use lichen_netstack::testing::names::Echo;
use lichen_netstack::testing::specs;
use lichen_netstack::time::Instant;
use lichen_netstack::worker::crossing::{Doorbell, Links};
use lichen_netstack::worker::{Worker, WorkerCommand};
use lichen_vhost_net::queue::from_guest::FromGuest;
use lichen_vhost_net::queue::layout::Layout;
use lichen_vhost_net::queue::to_guest::{Delivered, ToGuest};
use lichen_vhost_net::queue::{HeaderLayout, Notices, RingFeatures, Tables};
use virtio_queue::{DescriptorChain, Queue, QueueT};
use vm_memory::GuestMemoryMmap;

use super::guest::{BATCH, ENDS, Places, RECEIVER, SENDER, SIZE};

/// Which device.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    /// The rings alone.
    Ours,
    /// The whole datapath between them: guard, look-up of the MAC address, counters.
    Datapath,
    /// The same with each ring's port on a worker of its own.
    TwoWorkers,
    VirtioQueue,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ours => "rings",
            Self::Datapath => "datapath",
            Self::TwoWorkers => "two workers",
            Self::VirtioQueue => "virtio-queue",
        }
    }
}

/// A device and the buffer that each frame is copied through.
pub(super) struct Device {
    rings: Rings,
    buffer: Vec<u8>,
}

enum Rings {
    Ours { from_guest: FromGuest, to_guest: ToGuest },
    Datapath { worker: Box<Worker<End, World, Echo>> },
    TwoWorkers { sender: Box<Worker<End, World, Echo>>, receiver: Box<Worker<End, World, Echo>> },
    VirtioQueue { memory: Arc<GuestMemoryMmap>, from_guest: Queue, to_guest: Queue },
}

impl Device {
    pub(super) fn new(kind: Kind, memory: &Arc<GuestMemoryMmap>) -> Self {
        let rings = match kind {
            Kind::Ours => {
                let (from_guest, to_guest) = ours(memory);
                Rings::Ours { from_guest, to_guest }
            }
            Kind::Datapath => Rings::Datapath { worker: Box::new(datapath(ours(memory))) },
            Kind::TwoWorkers => {
                let [at_sender, at_receiver] = links();
                Rings::TwoWorkers {
                    sender: Box::new(sender(memory, at_sender)),
                    receiver: Box::new(receiver(memory, at_receiver)),
                }
            }
            Kind::VirtioQueue => Rings::VirtioQueue {
                memory: Arc::clone(memory),
                from_guest: queue(SENDER),
                to_guest: queue(RECEIVER),
            },
        };
        Self { rings, buffer: vec![0; MAX_FRAME] }
    }

    /// Carries at most a batch. Gives up at once when told to stop.
    pub(super) fn turn(&mut self, stop: &AtomicBool) {
        let buffer = &mut self.buffer;
        match &mut self.rings {
            Rings::Ours { from_guest, to_guest } => {
                for _ in 0..BATCH {
                    let Some(len) = from_guest.receive(buffer).expect("a sound ring") else {
                        break;
                    };
                    while to_guest.transmit(&buffer[..len]) == Ok(Delivered::Full) {
                        to_guest.flush().expect("a sound ring");
                        if stop.load(Ordering::Relaxed) {
                            return;
                        }
                    }
                }
                from_guest.flush().expect("a sound ring");
                to_guest.flush().expect("a sound ring");
            }
            // The buffers that the guest posts hold all frames that are under way.
            Rings::Datapath { worker } => take_turn(worker),
            Rings::TwoWorkers { sender, receiver } => {
                take_turn(sender);
                receiver.handle_crossings();
            }
            Rings::VirtioQueue { memory, from_guest, to_guest } => {
                for _ in 0..BATCH {
                    let Some(chain) = from_guest.pop_descriptor_chain(&**memory) else { break };
                    let head = chain.head_index();
                    let mut reader = chain.reader(memory).expect("valid");
                    let len = reader.available_bytes();
                    reader.read_exact(&mut buffer[..len]).expect("valid");
                    from_guest.add_used(&**memory, head, 0).expect("valid");
                    if !deliver(to_guest, memory, &mut buffer[..len], stop) {
                        return;
                    }
                }
                from_guest.needs_notification(&**memory).expect("valid");
                to_guest.needs_notification(&**memory).expect("valid");
            }
        }
    }
}

/// Spreads a frame over as many buffers as it takes; false when told to stop.
fn deliver(
    queue: &mut Queue,
    memory: &GuestMemoryMmap,
    frame: &mut [u8],
    stop: &AtomicBool,
) -> bool {
    let mut chains: [Option<DescriptorChain<&GuestMemoryMmap>>; 64] = [const { None }; 64];
    let (mut count, mut capacity) = (0, 0);
    while capacity < frame.len() {
        let Some(chain) = queue.pop_descriptor_chain(memory) else {
            if stop.load(Ordering::Relaxed) {
                return false;
            }
            continue;
        };
        capacity += chain.clone().writable().map(|part| part.len() as usize).sum::<usize>();
        chains[count] = Some(chain);
        count += 1;
    }
    frame[10..12].copy_from_slice(&(count as u16).to_le_bytes());
    let mut left = &*frame;
    for chain in chains.into_iter().take(count).flatten() {
        let head = chain.head_index();
        let mut writer = chain.writer(memory).expect("valid");
        let (now, later) = left.split_at(left.len().min(writer.available_bytes()));
        writer.write_all(now).expect("valid");
        queue.add_used(memory, head, now.len() as u32).expect("valid");
        left = later;
    }
    true
}

/// One end of the way through the datapath.
pub(super) enum End {
    Sender(FromGuest),
    Receiver(ToGuest),
}

impl Port for End {
    fn receive(&mut self, buffer: &mut [u8]) -> Receive {
        match self {
            Self::Sender(ring) => match ring.receive(buffer).expect("a sound ring") {
                Some(len) => Receive::Frame(len),
                None => Receive::Empty,
            },
            Self::Receiver(_) => Receive::Empty,
        }
    }

    fn transmit(&mut self, frame: &[u8]) -> Transmit {
        match self {
            Self::Receiver(ring) => match ring.transmit(frame).expect("a sound ring") {
                Delivered::Sent => Transmit::Sent,
                Delivered::Full => Transmit::Full,
            },
            Self::Sender(_) => Transmit::Full,
        }
    }

    fn has_room(&mut self) -> bool {
        true
    }

    fn flush(&mut self, _: &mut Counters) {
        let wanted = match self {
            Self::Sender(ring) => ring.flush(),
            Self::Receiver(ring) => ring.flush(),
        };
        wanted.expect("a sound ring");
    }

    fn offloads(&self) -> Offloads {
        Offloads::ChecksumTcpAndUdp
    }
}

/// Lets the worker of the sender take frames.
pub(super) fn take_turn(worker: &mut Worker<End, World, Echo>) {
    if worker.is_busy() {
        worker.handle_timeout(Instant::START);
    } else {
        worker.handle_frames(Instant::START, 0);
    }
    worker.handle_crossings();
}

/// What is between two workers.
pub(super) fn links() -> [Links; 2] {
    let bells = [(); 2].map(|()| Arc::new(Doorbell::new(None)));
    Links::between(&bells).try_into().unwrap_or_else(|_| unreachable!("two bells, two workers"))
}

/// A worker that has the sending ring, the receiving one being on the other.
pub(super) fn sender(memory: &Arc<GuestMemoryMmap>, links: Links) -> Worker<End, World, Echo> {
    worker(links, [0, 1], vec![(0, End::Sender(ours(memory).0))])
}

/// A worker that has the receiving ring, the sending one being on the other.
pub(super) fn receiver(memory: &Arc<GuestMemoryMmap>, links: Links) -> Worker<End, World, Echo> {
    worker(links, [0, 1], vec![(1, End::Receiver(ours(memory).1))])
}

/// A worker that has both.
fn datapath((from_guest, to_guest): (FromGuest, ToGuest)) -> Worker<End, World, Echo> {
    // The receiver first: a port's frames are read as soon as it is there.
    let ends = vec![(1, End::Receiver(to_guest)), (0, End::Sender(from_guest))];
    worker(Links::alone(), [0, 0], ends)
}

/// One that has these ends, both on one network, set up as control does it; on which worker each is.
fn worker(links: Links, workers: [u16; 2], ends: Vec<(u16, End)>) -> Worker<End, World, Echo> {
    let mut worker = Worker::new(World::default(), Echo::default(), 1, 1024).linked(links);
    let network = specs::network(1, "bench", 88);
    let port = |end: u8| {
        let address = Ipv4Addr::new(10, 88, 0, end);
        specs::port(end.into(), &format!("end{end}"), address, Attachment::VhostUser)
    };
    let ports = ENDS.map(port);
    let places = ports.iter().zip(0..).map(|(port, slot)| {
        (port, Location { worker: workers[usize::from(slot)], slot, port: port.id })
    });
    let directory = Directory::new([&network], places);
    worker.handle_command(Instant::START, WorkerCommand::SetDirectory(Arc::new(directory)));
    for (slot, io) in ends {
        let (spec, io) = (ports[usize::from(slot)].clone(), Some(io));
        worker.handle_command(Instant::START, WorkerCommand::SetPort { slot, spec, io });
    }
    worker
}

fn ours(memory: &Arc<GuestMemoryMmap>) -> (FromGuest, ToGuest) {
    let features = RingFeatures {
        header: HeaderLayout::Mergeable,
        notices: Notices::EventIndex,
        tables: Tables::Accepted,
    };
    let layout = |places: Places| {
        let Places { descriptors, available, used } = places;
        let [descriptors, available, used] = [descriptors, available, used].map(|at| at as u64);
        Layout::new(memory, SIZE, descriptors, available, used).expect("a sound ring")
    };
    let resumed = FromGuest::resume(Arc::clone(memory), layout(SENDER), features);
    let from_guest = resumed.expect("a sound ring");
    let resumed = ToGuest::resume(Arc::clone(memory), layout(RECEIVER), features);
    let to_guest = resumed.expect("a sound ring");
    (from_guest, to_guest)
}

fn queue(places: Places) -> Queue {
    let mut queue = Queue::new(SIZE).expect("a power of two");
    queue.set_size(SIZE);
    queue.set_desc_table_address(Some(places.descriptors as u32), Some(0));
    queue.set_avail_ring_address(Some(places.available as u32), Some(0));
    queue.set_used_ring_address(Some(places.used as u32), Some(0));
    queue.set_event_idx(true);
    queue.set_ready(true);
    queue
}
