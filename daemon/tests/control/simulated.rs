//! Twins of what control works with: a datapath in a thread, namespaces that are only remembered.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use lichen_api::{Directories, WorkloadKind};
use lichen_daemon::app::{App, Parts};
use lichen_daemon::state::{self, Identity, Process, Store};
use lichen_daemon::wiring::datapath_process::{Connected, DatapathError, DatapathSource, Origin};
use lichen_daemon::wiring::link::Link;
use lichen_daemon::wiring::namespaces::{Namespaces, ProcessError};
use lichen_netstack::command::{
    Answer, Attachment, CaptureSpec, Command, Event, FlowRow, Flows, Inventory, LinkState,
    PROTOCOL, PortLink, Statistics,
};
use lichen_netstack::ids::PortId;
use lichen_workload::spec::{NetnsTarget, TapRequest};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// A directory of a test's own, removed with it.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("lichen-it-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn directories(&self) -> Directories {
        Directories::prepare_in(&self.0).unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A datapath that does nothing but remember. Its memory outlives control, as the real one's does.
#[derive(Clone, Default)]
pub(crate) struct SimulatedDatapath(Arc<Mutex<Memory>>);

#[derive(Default)]
struct Memory {
    inventory: Inventory,
    listeners: BTreeMap<u32, TcpListener>,
    taps: BTreeSet<u32>,
    sockets: BTreeMap<u32, OwnedFd>,
    flows: Vec<FlowRow>,
    captures: Vec<(CaptureSpec, File)>,
    plugged: BTreeMap<u32, OwnedFd>,
    alive: bool,
    link: Option<Link>,
    commands: usize,
    starts: usize,
    is_full: bool,
}

impl SimulatedDatapath {
    /// What it holds.
    pub(crate) fn inventory(&self) -> Inventory {
        self.0.lock().unwrap().inventory.clone()
    }

    /// How many commands it was given.
    pub(crate) fn commands(&self) -> usize {
        self.0.lock().unwrap().commands
    }

    /// How often it was started.
    pub(crate) fn starts(&self) -> usize {
        self.0.lock().unwrap().starts
    }

    /// Ends it as `kill -9` would: everything it held is closed.
    pub(crate) fn kill(&self) {
        let mut memory = self.0.lock().unwrap();
        let link = memory.link.take();
        *memory = Memory { starts: memory.starts, ..Memory::default() };
        if let Some(link) = link {
            link.close();
        }
    }

    /// From now on it takes no further port.
    pub(crate) fn fill(&self) {
        self.0.lock().unwrap().is_full = true;
    }

    /// Loses a port, as when a tap breaks.
    pub(crate) fn lose_port(&self, id: u32) {
        let mut memory = self.0.lock().unwrap();
        memory.inventory.ports.retain(|port| port.id.0 != id);
        memory.inventory.forwards.retain(|forward| forward.port.0 != id);
        memory.taps.remove(&id);
        let event = Event::PortLost { port: PortId(id), reason: "tap gone".into() };
        memory.link.as_ref().unwrap().send(&event, &[]).unwrap();
    }

    /// Changes the link of a port, as when a virtual machine connects.
    pub(crate) fn set_link(&self, id: u32, state: LinkState) {
        let mut memory = self.0.lock().unwrap();
        let port = PortId(id);
        memory.inventory.links.retain(|there| there.port != port);
        memory.inventory.links.push(PortLink { port, state: state.clone() });
        let event = Event::Link(PortLink { port, state });
        memory.link.as_ref().unwrap().send(&event, &[]).unwrap();
    }

    /// The flows that it tells of.
    pub(crate) fn set_flows(&self, flows: Vec<FlowRow>) {
        self.0.lock().unwrap().flows = flows;
    }

    /// The captures that it was asked for, with their pipes.
    pub(crate) fn take_captures(&self) -> Vec<(CaptureSpec, File)> {
        std::mem::take(&mut self.0.lock().unwrap().captures)
    }

    /// What was passed for a port, which has no guest afterwards.
    pub(crate) fn take_plugged(&self, id: u32) -> Option<OwnedFd> {
        self.0.lock().unwrap().plugged.remove(&id)
    }

    /// Says what a workload's DHCP client has said.
    pub(crate) fn decline_address(&self, id: u32, address: std::net::Ipv4Addr) {
        let port = PortId(id);
        let event = Event::AddressDeclined { port, address };
        self.0.lock().unwrap().link.as_ref().unwrap().send(&event, &[]).unwrap();
    }

    fn serve(self, link: Link) {
        while let Ok(Some(message)) = link.receive() {
            let command: Command = serde_json::from_slice(&message.body).unwrap();
            let mut memory = self.0.lock().unwrap();
            let taken: Option<OwnedFd> = match &command {
                Command::TakeListener { forward } => memory
                    .listeners
                    .get(&forward.0)
                    .map(|listener| listener.try_clone().unwrap().into()),
                Command::TakeSocket { port } => {
                    memory.sockets.get(&port.0).map(|socket| socket.try_clone().unwrap())
                }
                _ => None,
            };
            let answer = memory.obey(command, message.descriptors);
            drop(memory);
            let taken = taken.as_ref().map(AsFd::as_fd);
            if link.send(&answer, taken.as_slice()).is_err() {
                return;
            }
        }
    }
}

impl Memory {
    fn obey(&mut self, command: Command, mut descriptors: Vec<OwnedFd>) -> Answer {
        self.commands += 1;
        let inventory = &mut self.inventory;
        match command {
            Command::Hello { .. } => {
                return Answer::Hello {
                    protocol: PROTOCOL,
                    version: "0".into(),
                    pid: 1,
                    workers: 1,
                    busy_poll_us: 0,
                };
            }
            Command::Inventory => return Answer::Inventory(inventory.clone()),
            Command::Statistics => return Answer::Statistics(Statistics::default()),
            Command::SetNetwork(spec) => {
                inventory.networks.retain(|there| there.id != spec.id);
                inventory.networks.push(spec);
            }
            Command::RemoveNetwork { network } => {
                inventory.networks.retain(|there| there.id != network);
            }
            Command::SetPort(_) if self.is_full => {
                return Answer::Refused { reason: "all 1024 ports are in use".into() };
            }
            Command::SetPort(spec) => {
                if let (Attachment::Tap { queues }, 1..) = (spec.attachment, descriptors.len()) {
                    assert_eq!(descriptors.len(), usize::from(queues), "all queues or none");
                }
                if let Some(descriptor) = descriptors.pop() {
                    self.taps.insert(spec.id.0);
                    if spec.attachment.is_socket() {
                        self.sockets.insert(spec.id.0, descriptor);
                        let state = LinkState::Waiting;
                        inventory.links.push(PortLink { port: spec.id, state });
                    }
                } else if !self.taps.contains(&spec.id.0) {
                    return Answer::Refused { reason: "a new port needs its tap".into() };
                }
                inventory.ports.retain(|there| there.id != spec.id);
                inventory.ports.push(spec);
            }
            Command::RemovePort { port } => {
                inventory.ports.retain(|there| there.id != port);
                inventory.forwards.retain(|there| there.port != port);
                inventory.links.retain(|there| there.port != port);
                self.taps.remove(&port.0);
                self.sockets.remove(&port.0);
            }
            Command::Plug { port } => {
                assert_eq!(descriptors.len(), 1);
                if self.plugged.contains_key(&port.0) {
                    return Answer::Busy;
                }
                if !self.sockets.contains_key(&port.0) {
                    return Answer::Refused { reason: "there is no such port".into() };
                }
                self.plugged.extend(descriptors.pop().map(|descriptor| (port.0, descriptor)));
            }
            Command::SetForward(spec) => match descriptors.pop() {
                Some(listener) => {
                    self.listeners.insert(spec.id.0, TcpListener::from(listener));
                    inventory.forwards.retain(|there| there.id != spec.id);
                    inventory.forwards.push(spec);
                }
                None => return Answer::Refused { reason: "a forward needs its listener".into() },
            },
            Command::RemoveForward { forward } => {
                self.listeners.remove(&forward.0);
                inventory.forwards.retain(|there| there.id != forward);
            }
            Command::SetResolvers { resolvers } => inventory.resolvers = resolvers,
            Command::TakeListener { .. } | Command::TakeSocket { .. } => {}
            Command::Stop => self.alive = false,
            Command::Flows { port } => {
                let mut rows = self.flows.clone();
                rows.retain(|row| port.is_none_or(|port| port.0 == row.port));
                return Answer::Flows(Flows { rows, left_out: 7 });
            }
            Command::Capture(spec) => {
                let pipe = File::from(descriptors.pop().expect("a capture brings its pipe"));
                self.captures.push((spec, pipe));
            }
        }
        Answer::Done
    }
}

impl DatapathSource for SimulatedDatapath {
    fn connect(&mut self) -> Result<Connected, DatapathError> {
        let (ours, theirs) = UnixStream::pair().map_err(DatapathError::Connect)?;
        let link = Link::new(theirs);
        let mut memory = self.0.lock().unwrap();
        let origin = if memory.alive { Origin::Adopted } else { Origin::Started };
        if origin == Origin::Started {
            *memory = Memory { alive: true, starts: memory.starts + 1, ..Memory::default() };
        }
        memory.link = Some(link.try_clone().map_err(DatapathError::Connect)?);
        drop(memory);
        let twin = self.clone();
        std::thread::spawn(move || twin.serve(link));
        Ok(Connected { stream: ours, pidfd: None, origin })
    }
}

/// Namespaces of processes that are real, so that their end is, but whose taps are /dev/null.
#[derive(Clone, Default)]
pub(crate) struct SimulatedNamespaces {
    refusals: Arc<Mutex<BTreeMap<i32, Refusal>>>,
    discarded: Arc<AtomicUsize>,
}

#[derive(Clone)]
struct Refusal(String);

impl SimulatedNamespaces {
    /// From now on a tap of that process cannot be opened.
    pub(crate) fn refuse_tap(&self, pid: i32, reason: &str) {
        self.refusals.lock().unwrap().insert(pid, Refusal(reason.to_owned()));
    }

    /// How many taps were discarded.
    pub(crate) fn discarded(&self) -> usize {
        self.discarded.load(Ordering::SeqCst)
    }

    /// From now on it can again.
    pub(crate) fn allow_tap(&self, pid: i32) {
        self.refusals.lock().unwrap().remove(&pid);
    }
}

impl Namespaces for SimulatedNamespaces {
    fn open_tap(&self, request: &TapRequest) -> Result<Vec<OwnedFd>, String> {
        let NetnsTarget::Process { pid, .. } = request.target else {
            return Err("not a process".into());
        };
        match self.refusals.lock().unwrap().get(&pid) {
            Some(Refusal(reason)) => Err(reason.clone()),
            None => {
                let queue = |_| File::open("/dev/null").map(OwnedFd::from);
                let queues: io::Result<_> = (0..request.queues).map(queue).collect();
                queues.map_err(|error| error.to_string())
            }
        }
    }

    fn discard_tap(&self, _: &OwnedFd) {
        self.discarded.fetch_add(1, Ordering::SeqCst);
    }

    fn hold(
        &self,
        pid: i32,
        start_time: Option<u64>,
        kind: WorkloadKind,
    ) -> Result<(Process, OwnedFd), ProcessError> {
        let gone = || ProcessError::Gone(pid);
        let number = Pid::from_raw(pid).ok_or_else(gone)?;
        let pidfd = pidfd_open(number, PidfdFlags::empty()).map_err(|_| gone())?;
        let found = lichen_workload::start_time_of(pid).map_err(|_| gone())?;
        if start_time.is_some_and(|expected| expected != found) {
            return Err(ProcessError::Recycled(pid));
        }
        let netns = Identity { dev: 4, ino: u64::try_from(pid).unwrap() };
        let netns = (kind != WorkloadKind::Vm).then_some(netns);
        Ok((Process { pid, start_time: found, netns }, pidfd))
    }

    fn netns_of(&self, pid: i32) -> io::Result<Identity> {
        Ok(Identity { dev: 4, ino: u64::try_from(pid).unwrap() })
    }
}

/// One control, on a datapath and namespaces that may outlive it.
pub(crate) struct Control {
    pub(crate) app: Arc<App>,
    runtime: tokio::runtime::Runtime,
}

impl Control {
    pub(crate) fn start(
        scratch: &Scratch,
        datapath: &SimulatedDatapath,
        namespaces: &SimulatedNamespaces,
    ) -> Self {
        Self::start_in_boot(scratch, datapath, namespaces, "this boot")
    }

    pub(crate) fn start_in_boot(
        scratch: &Scratch,
        datapath: &SimulatedDatapath,
        namespaces: &SimulatedNamespaces,
        boot_id: &str,
    ) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let directories = scratch.directories();
        let connection = state::open(&directories.state.database()).unwrap();
        let parts = Parts {
            store: Store::start(connection).unwrap(),
            directories,
            source: Box::new(datapath.clone()),
            namespaces: Arc::new(namespaces.clone()),
            resolvers: vec!["192.0.2.53:53".parse().unwrap()],
            boot_id: boot_id.to_owned(),
            service: false,
        };
        let app = runtime.block_on(App::start(parts)).unwrap();
        runtime.block_on(app.reconciler().sync());
        Self { app, runtime }
    }

    pub(crate) fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    /// Ends it as `kill -9` would, apart from memory: nothing is told to anybody.
    pub(crate) fn kill(self) {
        self.block_on(self.app.reconciler().stop(lichen_api::StopScope::Control));
        self.runtime.shutdown_background();
    }
}
