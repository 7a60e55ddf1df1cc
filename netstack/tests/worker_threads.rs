//! Two workers on threads of their own, with real descriptors and wake-ups.

use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use lichen_netstack::command::{Attachment, NetworkSpec, PortSpec};
use lichen_netstack::frame::vnet_header::VNET_LEN;
use lichen_netstack::ids::{MacAddr, NetworkId, PortId};
use lichen_netstack::port::alarm::{Alarm, Ended};
use lichen_netstack::port::unix_stream::UnixStreamPort;
use lichen_netstack::switch::directory::{Directory, Location};
use lichen_netstack::testing::frames::{ethernet, udp};
use lichen_netstack::testing::names::Echo;
use lichen_netstack::worker::event_loop::{WorkerHandle, WorkerLoop};
use lichen_netstack::worker::{WorkerCommand, WorkerEvent};
use rustix::event::{EventfdFlags, eventfd};

/// Frames that each guest sends before it reads as many: of both together less than a queue holds.
const BURST: u32 = 200;
const ROUNDS: u32 = 500;
const PATIENCE: Duration = Duration::from_secs(30);

fn spec(number: u32) -> PortSpec {
    let address = Ipv4Addr::new(10, 88, 0, number as u8 + 2);
    PortSpec {
        id: PortId(number + 1),
        network: NetworkId(1),
        name: format!("guest{number}"),
        aliases: Vec::new(),
        mac: MacAddr::for_ipv4(address),
        address,
        address6: None,
        default_route: true,
        allow_host: Vec::new(),
        attachment: Attachment::UnixStream,
    }
}

fn place(number: u32) -> Location {
    Location { worker: number as u16, slot: number as u16, port: PortId(number + 1) }
}

fn directory() -> Arc<Directory> {
    let gateway = Ipv4Addr::new(10, 88, 0, 1);
    let network = NetworkSpec {
        id: NetworkId(1),
        name: "bridge".to_owned(),
        subnet: "10.88.0.0/16".parse().unwrap(),
        gateway,
        prefix6: None,
        gateway_mac: MacAddr::for_ipv4(gateway),
        mtu: 1500,
        internal: false,
    };
    let ports = [spec(0), spec(1)];
    Arc::new(Directory::new([&network], ports.iter().zip([place(0), place(1)])))
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

/// Sends bursts to the other and checks what comes from it, in order.
fn speak(mut stream: UnixStream, number: u32) {
    let (ours, theirs) = (spec(number), spec(1 - number));
    let frame = |at: u32| {
        let payload = [at.to_be_bytes().to_vec(), vec![9; at as usize % 300]].concat();
        let packet = udp((ours.address, 1).into(), (theirs.address, 2).into(), &payload);
        ethernet(ours.mac, theirs.mac, 0x0800, &packet)[VNET_LEN..].to_vec()
    };
    let (mut sent, mut heard) = (0..ROUNDS * BURST, 0..ROUNDS * BURST);
    for _ in 0..ROUNDS {
        let mut burst = Vec::new();
        for frame in sent.by_ref().take(BURST as usize).map(frame) {
            burst.extend_from_slice(&(frame.len() as u32).to_be_bytes());
            burst.extend_from_slice(&frame);
        }
        stream.write_all(&burst).unwrap();
        for at in heard.by_ref().take(BURST as usize) {
            let mut len = [0; 4];
            stream.read_exact(&mut len).expect("a frame that was sent arrives");
            let mut frame = vec![0; u32::from_be_bytes(len) as usize];
            stream.read_exact(&mut frame).unwrap();
            assert_eq!(frame[42..46], at.to_be_bytes(), "in order, none lost");
            assert_eq!(frame.len(), 46 + at as usize % 300);
        }
    }
}

#[test]
fn frames_between_two_threads_arrive_in_order_and_none_is_lost_or_slept_over() {
    let parts = vec![(Echo::default(), 1), (Echo::default(), 2)];
    let (loops, handles) = WorkerLoop::prepare(parts, 64).unwrap();
    let (events, told) = mpsc::channel();
    let run = |worker: WorkerLoop<UnixStreamPort, Echo>| {
        let events = events.clone();
        thread::spawn(move || worker.run(|event| events.send(event).unwrap()))
    };
    let workers: Vec<_> = loops.into_iter().map(run).collect();
    let guests = (0..).zip(&handles).map(|(number, handle)| (plug(handle, number), number));
    let guests: Vec<_> = guests
        .map(|(stream, number)| {
            let own = stream.try_clone().unwrap();
            // Kept open until all is counted.
            (stream, thread::spawn(move || speak(own, number)))
        })
        .collect();
    let ends = guests.into_iter().map(|(stream, guest)| guest.join().map(|()| stream));
    let _open: Vec<_> = ends.map(|end| end.expect("every frame was right")).collect();
    for handle in &handles {
        handle.send(WorkerCommand::Statistics);
        let ports = loop {
            match told.recv_timeout(PATIENCE).expect("the worker answers") {
                WorkerEvent::Statistics(ports) => break ports,
                _ => continue,
            }
        };
        assert!(ports[0].drops.is_empty(), "{:?}", ports[0].drops);
        assert_eq!(ports[0].frames_from_guest, u64::from(ROUNDS * BURST));
        assert_eq!(ports[0].frames_to_guest, u64::from(ROUNDS * BURST));
    }
    // One that ends does not hold the other up, nor its own end.
    for (handle, worker) in handles.iter().zip(workers) {
        handle.send(WorkerCommand::Stop);
        worker.join().expect("no panic").expect("no error");
    }
}
