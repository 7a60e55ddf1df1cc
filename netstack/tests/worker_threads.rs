//! Two workers on threads of their own, with real descriptors and wake-ups.

use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use lichen_netstack::command::{Attachment, PortSpec, PortStatistics};
use lichen_netstack::frame::vnet_header::VNET_LEN;
use lichen_netstack::ids::PortId;
use lichen_netstack::port::alarm::{Alarm, Ended};
use lichen_netstack::port::unix_stream::UnixStreamPort;
use lichen_netstack::switch::directory::{Directory, Location};
use lichen_netstack::testing::frames::{ethernet, udp};
use lichen_netstack::testing::names::Echo;
use lichen_netstack::testing::specs;
use lichen_netstack::worker::event_loop::{WorkerHandle, WorkerLoop};
use lichen_netstack::worker::{WorkerCommand, WorkerEvent};
use rustix::event::{EventfdFlags, eventfd};

/// Frames that each guest sends before it reads as many: of both together less than a queue holds.
const BURST: u32 = 200;
const ROUNDS: u32 = 500;
const PATIENCE: Duration = Duration::from_secs(30);

fn spec(number: u32) -> PortSpec {
    let address = Ipv4Addr::new(10, 88, 0, number as u8 + 2);
    specs::port(number + 1, &format!("guest{number}"), address, Attachment::UnixStream)
}

fn place(number: u32) -> Location {
    Location { worker: number as u16, slot: number as u16, port: PortId(number + 1) }
}

fn directory() -> Arc<Directory> {
    directory_of([place(0), place(1)])
}

fn directory_of(places: [Location; 2]) -> Arc<Directory> {
    let network = specs::network(1, "bridge", 88);
    let ports = [spec(0), spec(1)];
    Arc::new(Directory::new([&network], ports.iter().zip(places)))
}

/// Puts a guest at a worker; answers its end.
fn plug(handle: &WorkerHandle<UnixStreamPort>, number: u32) -> UnixStream {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_read_timeout(Some(PATIENCE)).unwrap();
    let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap());
    let alarm: Arc<Alarm<Ended>> = Arc::new(Alarm::new(wake));
    let slot = place(number).slot;
    let watch = handle.frame_watch(slot);
    let io = UnixStreamPort::new(Arc::new(OwnedFd::from(ours)), watch, alarm).unwrap();
    handle.send(WorkerCommand::SetDirectory(directory()));
    handle.send(WorkerCommand::SetPort { slot, spec: spec(number), io: Some(io) });
    theirs
}

/// A datagram of a guest to the other, as its stream carries it.
fn message(number: u32, payload: &[u8]) -> Vec<u8> {
    let (ours, theirs) = (spec(number), spec(1 - number));
    let packet = udp((ours.address, 1).into(), (theirs.address, 2).into(), payload);
    let frame = &ethernet(ours.mac, theirs.mac, 0x0800, &packet)[VNET_LEN..];
    [&(frame.len() as u32).to_be_bytes(), frame].concat()
}

/// The next frame of a stream.
fn hear(stream: &mut UnixStream) -> Vec<u8> {
    let mut len = [0; 4];
    stream.read_exact(&mut len).expect("a frame that was sent arrives");
    let mut frame = vec![0; u32::from_be_bytes(len) as usize];
    stream.read_exact(&mut frame).unwrap();
    frame
}

type Running = Vec<thread::JoinHandle<std::io::Result<()>>>;

/// Two workers on threads of their own, their handles, and what they tell.
fn start() -> (Running, Vec<WorkerHandle<UnixStreamPort>>, mpsc::Receiver<WorkerEvent>) {
    let parts = vec![(Echo::default(), 1), (Echo::default(), 2)];
    let (loops, handles) = WorkerLoop::prepare(parts, 64).unwrap();
    let (events, told) = mpsc::channel();
    let run = |worker: WorkerLoop<UnixStreamPort, Echo>| {
        let events = events.clone();
        thread::spawn(move || worker.run(|event| events.send(event).unwrap()))
    };
    (loops.into_iter().map(run).collect(), handles, told)
}

/// One that ends does not hold the other up, nor its own end.
fn stop(workers: Running, handles: &[WorkerHandle<UnixStreamPort>]) {
    for (handle, worker) in handles.iter().zip(workers) {
        handle.send(WorkerCommand::Stop);
        worker.join().expect("no panic").expect("no error");
    }
}

/// Sends bursts to the other and checks what comes from it, in order.
fn speak(mut stream: UnixStream, number: u32) {
    let numbered = |at: u32| {
        let payload = [at.to_be_bytes().to_vec(), vec![9; at as usize % 300]].concat();
        message(number, &payload)
    };
    let (mut sent, mut heard) = (0..ROUNDS * BURST, 0..ROUNDS * BURST);
    for _ in 0..ROUNDS {
        let burst: Vec<u8> = sent.by_ref().take(BURST as usize).flat_map(numbered).collect();
        stream.write_all(&burst).unwrap();
        for at in heard.by_ref().take(BURST as usize) {
            let frame = hear(&mut stream);
            assert_eq!(frame[42..46], at.to_be_bytes(), "in order, none lost");
            assert_eq!(frame.len(), 46 + at as usize % 300);
        }
    }
}

/// Asks a worker for its ports' counters.
fn statistics(
    handle: &WorkerHandle<UnixStreamPort>,
    told: &mpsc::Receiver<WorkerEvent>,
) -> Vec<PortStatistics> {
    handle.send(WorkerCommand::Statistics);
    loop {
        match told.recv_timeout(PATIENCE).expect("the worker answers") {
            WorkerEvent::Statistics(ports) => return ports,
            _ => continue,
        }
    }
}

/// A guest moves to and fro while it sends: what is lost at that moment is counted, the rest comes in order.
#[test]
fn a_port_moves_under_load_and_whatever_it_sent_arrives_or_is_counted() {
    const FRAMES: u32 = 100_000;
    let (workers, handles, told) = start();
    let (mover, mut reader) = (plug(&handles[0], 0), plug(&handles[1], 1));
    // Both are there before anything is sent.
    handles.iter().for_each(|handle| drop(statistics(handle, &told)));
    let mut writer = mover.try_clone().unwrap();
    // How far the receiver is, so that what is lost is lost by the move and not for want of room.
    let progress = Arc::new(AtomicU32::new(0));
    let heard_so_far = Arc::clone(&progress);
    let sender = thread::spawn(move || {
        for at in 0..FRAMES {
            writer.write_all(&message(0, &at.to_be_bytes())).unwrap();
            let may_go_on = || progress.load(Ordering::Relaxed) + 300 > at;
            let _ = at % 50 != 0 || wait_for(may_go_on);
        }
    });
    let receiver = thread::spawn(move || {
        let (mut heard, mut last) = (0u64, None);
        loop {
            let frame = hear(&mut reader);
            let at = u32::from_be_bytes(frame[42..46].try_into().unwrap());
            assert!(last.is_none_or(|last| last < at), "{at} after {last:?}");
            if at == u32::MAX {
                return (heard, reader);
            }
            (heard, last) = (heard + 1, Some(at));
            heard_so_far.store(at, Ordering::Relaxed);
        }
    });
    let mut at = 0;
    while !sender.is_finished() || at == 0 {
        let (yielded, moving) = mpsc::channel();
        handles[at].send(WorkerCommand::Yield { slot: 0, port: PortId(1), to: yielded });
        at = 1 - at;
        let moving = moving.recv().unwrap().expect("it may go");
        handles[at].send(WorkerCommand::Adopt { moving });
        let directory = directory_of([Location { worker: at as u16, ..place(0) }, place(1)]);
        for handle in &handles {
            handle.send(WorkerCommand::SetDirectory(Arc::clone(&directory)));
        }
    }
    sender.join().expect("it could send");
    // All that it has sent was read when it is asked for counters, since a turn takes what is there.
    let mut all = Vec::new();
    let counted = wait_for(|| {
        all = [statistics(&handles[0], &told), statistics(&handles[1], &told)].concat();
        all.iter().any(|port| port.port == 1 && port.frames_from_guest == u64::from(FRAMES))
    });
    assert!(counted, "{all:?}");
    let mut last = mover.try_clone().unwrap();
    last.write_all(&message(0, &[0xff; 4])).unwrap();
    let (heard, _reader) = receiver.join().expect("in order");
    all = [statistics(&handles[0], &told), statistics(&handles[1], &told)].concat();
    let lost: u64 = all.iter().flat_map(|port| port.drops.values()).sum();
    assert_eq!(heard + lost, u64::from(FRAMES), "{all:?}");
    assert!(heard > u64::from(FRAMES / 2), "most arrives: {lost} were lost");
    stop(workers, &handles);
}

/// Gives others time until it holds, for a while. Answers whether it does.
fn wait_for(mut holds: impl FnMut() -> bool) -> bool {
    (0..20_000).any(|_| {
        let is_so = holds();
        if !is_so {
            thread::yield_now();
        }
        is_so
    })
}

#[test]
fn frames_between_two_threads_arrive_in_order_and_none_is_lost_or_slept_over() {
    let (workers, handles, told) = start();
    let guests = (0..).zip(&handles).map(|(number, handle)| (plug(handle, number), number));
    let guests: Vec<_> = guests.collect();
    // Both are there before anything is sent.
    handles.iter().for_each(|handle| drop(statistics(handle, &told)));
    let guests: Vec<_> = guests
        .into_iter()
        .map(|(stream, number)| {
            let own = stream.try_clone().unwrap();
            // Kept open until all is counted.
            (stream, thread::spawn(move || speak(own, number)))
        })
        .collect();
    let ends = guests.into_iter().map(|(stream, guest)| guest.join().map(|()| stream));
    let _open: Vec<_> = ends.map(|end| end.expect("every frame was right")).collect();
    for handle in &handles {
        let ports = statistics(handle, &told);
        assert!(ports[0].drops.is_empty(), "{:?}", ports[0].drops);
        assert_eq!(ports[0].frames_from_guest, u64::from(ROUNDS * BURST));
        assert_eq!(ports[0].frames_to_guest, u64::from(ROUNDS * BURST));
    }
    stop(workers, &handles);
}
