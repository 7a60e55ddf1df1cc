//! Two devices that carry frames from the sending ring to the receiving one.

use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lichen_netstack::command::Attachment;
use lichen_netstack::port::MAX_FRAME;
use lichen_netstack::switch::directory::{Directory, Location};
use lichen_netstack::testing::host::World;
use lichen_netstack::testing::names::Echo;
use lichen_netstack::testing::specs;
use lichen_netstack::time::Instant;
use lichen_netstack::worker::crossing::{Doorbell, Links};
use lichen_netstack::worker::{Worker, WorkerCommand};
use lichen_vhost_net::port::VhostPort;
use lichen_vhost_net::queue::from_guest::FromGuest;
use lichen_vhost_net::queue::layout::Layout;
use lichen_vhost_net::queue::to_guest::{Delivered, ToGuest};
use lichen_vhost_net::queue::{HeaderLayout, Notices, RingFeatures, Tables};
use lichen_vhost_net::testing::port::port;
use virtio_queue::{DescriptorChain, Queue, QueueT};
use vm_memory::GuestMemoryMmap;

use super::guest::{BATCH, ENDS, Places, RECEIVER, RECEIVER_SENDS, SENDER, SENDER_RECEIVES, SIZE};

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

/// The datapath as it is with virtual machines, on a simulated host.
pub(super) type Datapath = Worker<VhostPort, World, Echo>;

/// A device and the buffer that each frame is copied through.
pub(super) struct Device {
    rings: Rings,
    buffer: Vec<u8>,
}

enum Rings {
    Ours { from_guest: FromGuest, to_guest: ToGuest },
    Datapath { worker: Box<Datapath> },
    TwoWorkers { sender: Box<Datapath>, receiver: Box<Datapath> },
    VirtioQueue { memory: Arc<GuestMemoryMmap>, from_guest: Queue, to_guest: Queue },
}

impl Device {
    pub(super) fn new(kind: Kind, memory: &Arc<GuestMemoryMmap>) -> Self {
        let rings = match kind {
            Kind::Ours => {
                let (from_guest, to_guest) =
                    (from_guest(memory, SENDER), to_guest(memory, RECEIVER));
                Rings::Ours { from_guest, to_guest }
            }
            Kind::Datapath => Rings::Datapath { worker: Box::new(datapath(memory)) },
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

/// Lets the worker of the sender take frames.
pub(super) fn take_turn(worker: &mut Datapath) {
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

/// A worker that has the sending port, the receiving one being on the other.
pub(super) fn sender(memory: &Arc<GuestMemoryMmap>, links: Links) -> Datapath {
    worker(links, [0, 1], vec![(0, sending_port(memory))])
}

/// A worker that has the receiving port, the sending one being on the other.
pub(super) fn receiver(memory: &Arc<GuestMemoryMmap>, links: Links) -> Datapath {
    worker(links, [0, 1], vec![(1, receiving_port(memory))])
}

/// A worker that has both.
fn datapath(memory: &Arc<GuestMemoryMmap>) -> Datapath {
    // The receiver first: a port's frames are read as soon as it is there.
    let ports = vec![(1, receiving_port(memory)), (0, sending_port(memory))];
    worker(Links::alone(), [0, 0], ports)
}

/// The port that frames come from. Nothing is sent to it.
fn sending_port(memory: &Arc<GuestMemoryMmap>) -> VhostPort {
    port(memory, from_guest(memory, SENDER), to_guest(memory, SENDER_RECEIVES))
}

/// The port that frames go to, which sends none.
fn receiving_port(memory: &Arc<GuestMemoryMmap>) -> VhostPort {
    port(memory, from_guest(memory, RECEIVER_SENDS), to_guest(memory, RECEIVER))
}

/// One that has these ends, both on one network, set up as control does it; on which worker each is.
fn worker(links: Links, workers: [u16; 2], ends: Vec<(u16, VhostPort)>) -> Datapath {
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

const FEATURES: RingFeatures = RingFeatures {
    header: HeaderLayout::Mergeable,
    notices: Notices::EventIndex,
    tables: Tables::Accepted,
};

fn from_guest(memory: &Arc<GuestMemoryMmap>, places: Places) -> FromGuest {
    FromGuest::resume(Arc::clone(memory), layout(memory, places), FEATURES).expect("a sound ring")
}

fn to_guest(memory: &Arc<GuestMemoryMmap>, places: Places) -> ToGuest {
    ToGuest::resume(Arc::clone(memory), layout(memory, places), FEATURES).expect("a sound ring")
}

fn layout(memory: &GuestMemoryMmap, places: Places) -> Layout {
    let Places { descriptors, available, used } = places;
    let [descriptors, available, used] = [descriptors, available, used].map(|at| at as u64);
    Layout::new(memory, SIZE, descriptors, available, used).expect("a sound ring")
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
