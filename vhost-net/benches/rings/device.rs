//! Two devices that carry frames from the sending ring to the receiving one.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lichen_netstack::port::MAX_FRAME;
use lichen_vhost_net::queue::from_guest::FromGuest;
use lichen_vhost_net::queue::layout::Layout;
use lichen_vhost_net::queue::to_guest::{Delivered, ToGuest};
use lichen_vhost_net::queue::{HeaderLayout, Notices, RingFeatures, Tables};
use virtio_queue::{DescriptorChain, Queue, QueueT};
use vm_memory::GuestMemoryMmap;

use super::guest::{BATCH, Places, RECEIVER, SENDER, SIZE};

/// Which device.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Ours,
    VirtioQueue,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
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
    VirtioQueue { memory: Arc<GuestMemoryMmap>, from_guest: Queue, to_guest: Queue },
}

impl Device {
    pub(super) fn new(kind: Kind, memory: &Arc<GuestMemoryMmap>) -> Self {
        let rings = match kind {
            Kind::Ours => ours(memory),
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

fn ours(memory: &Arc<GuestMemoryMmap>) -> Rings {
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
    Rings::Ours { from_guest, to_guest }
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
