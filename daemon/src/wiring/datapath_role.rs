//! The role `datapath`: worker threads that carry frames, and a control thread that takes commands.
//!
//! It outlives control and serves one control at a time; the next waits its turn. It opens no file
//! but its own socket.

use std::any::Any;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use lichen_api::RuntimeDirectory;
use lichen_netstack::command::{
    Answer, CaptureSpec, Command, Event, Flows, LinkState, NetworkSpec, PROTOCOL, PortSpec,
    PortStatistics, Statistics,
};
use lichen_netstack::datapath::{CommandError, Datapath};
use lichen_netstack::ids::PortId;
use lichen_netstack::worker::WorkerEvent;
use lichen_netstack::worker::event_loop::WorkerLoop;

use super::attachments::{Attached, Attachments};
use super::capture::{Captures, Member};
use super::descriptors;
use super::link::{Link, LinkError};
use super::name_service::Names;
use super::workers::{self, Wanted};
use crate::causes::chain;

/// A control that does not read for this long is given up.
const WRITE_PATIENCE: Duration = Duration::from_secs(1);
/// How long the workers may take to tell their counters, or their flows.
const WORKER_PATIENCE: Duration = Duration::from_secs(2);

/// Runs the role until it is told to stop.
pub fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the datapath ends");
            ExitCode::FAILURE
        }
    }
}

/// Why a datapath could not run.
#[derive(Debug, thiserror::Error)]
enum RoleError {
    #[error(transparent)]
    Directory(#[from] lichen_api::DirectoryError),
    #[error(transparent)]
    Descriptors(#[from] descriptors::TooFew),
    #[error("cannot listen on {path}")]
    Listen { path: String, source: io::Error },
    #[error(transparent)]
    Workers(#[from] workers::Invalid),
    #[error("the workers cannot be started")]
    Worker(#[source] io::Error),
    #[error("a worker has failed")]
    WorkerFailed(#[source] io::Error),
    #[error("a defect was met in a worker")]
    WorkerPanicked,
}

fn run() -> Result<(), RoleError> {
    // Fails for a process group leader, which then has a session of its own already.
    let _ = rustix::process::setsid();
    let descriptors = descriptors::raise()?;
    let wanted = workers::wanted()?;
    let socket = RuntimeDirectory::prepare()?.datapath_socket();
    let listener = listen(&socket)
        .map_err(|source| RoleError::Listen { path: socket.display().to_string(), source })?;
    // Nobody needs to share a secret, and so nobody does.
    let part = |_| Ok((Names::new(random()?)?, random()?));
    let parts =
        (0..wanted.workers).map(part).collect::<io::Result<_>>().map_err(RoleError::Worker)?;
    let (loops, handles) = WorkerLoop::prepare(parts, descriptors::for_flows(descriptors))
        .map_err(RoleError::Worker)?;
    let loops = loops.into_iter().map(|worker| worker.busy_polling(wanted.busy_poll())).collect();
    let (events, told) = mpsc::channel();
    let links = events.clone();
    let attachments = Attachments::new(handles.clone(), move |port, state| {
        // The receiver lives as long as the process.
        let _ = links.send(Told::Link(port, state));
    })
    .map_err(RoleError::Worker)?;
    let datapath = Datapath::new(handles, attachments);
    let (counts, counted) = mpsc::channel();
    let shared = Arc::new(Shared {
        datapath: Mutex::new(datapath),
        control: Mutex::new(None),
        captures: Captures::default(),
        wanted,
    });
    let for_events = Arc::clone(&shared);
    thread::spawn(move || for_events.forward_events(&told, &counts));
    thread::spawn(move || shared.accept(&listener, &counted));
    let Wanted { workers, busy_poll_us } = wanted;
    let version = env!("CARGO_PKG_VERSION");
    tracing::info!(version, descriptors, workers, busy_poll_us, "the datapath runs");
    let result = run_all(loops, &events);
    // Only now: a control that sees the socket vanish finds nobody behind it.
    let _ = std::fs::remove_file(&socket);
    result
}

/// Runs each worker on a thread, until all have been stopped or the first one fails, which ends the process: its
/// ports are nobody's any more, and the next datapath serves them all.
fn run_all(
    loops: Vec<WorkerLoop<Attached, Names>>,
    events: &mpsc::Sender<Told>,
) -> Result<(), RoleError> {
    let (ends, ended) = mpsc::channel();
    for (worker, number) in loops.into_iter().zip(0u16..) {
        let (events, ends) = (events.clone(), ends.clone());
        let work = move || {
            let tell = move |event| {
                // The receiver lives as long as the process.
                let _ = events.send(Told::Worker(number, event));
            };
            let result = catch_unwind(AssertUnwindSafe(|| worker.run(tell)));
            let _ = ends.send(result);
        };
        let thread = thread::Builder::new().name(format!("worker-{number}")).spawn(work);
        thread.map_err(RoleError::Worker)?;
    }
    drop(ends);
    ended.into_iter().try_for_each(end_of_worker)
}

fn end_of_worker(result: Result<io::Result<()>, Box<dyn Any + Send>>) -> Result<(), RoleError> {
    result.map_err(|_| RoleError::WorkerPanicked)?.map_err(RoleError::WorkerFailed)
}

fn listen(socket: &Path) -> io::Result<UnixListener> {
    let listener = UnixListener::bind(socket)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

fn random() -> io::Result<u64> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(u64::from_ne_bytes(bytes))
}

/// A port with its network.
fn member<'a>(port: &'a PortSpec, networks: &'a [NetworkSpec]) -> Option<Member<'a>> {
    let network = networks.iter().find(|network| network.id == port.network)?;
    Some(Member { port, network })
}

/// What a worker has counted, when it was asked.
enum Counted {
    Statistics(Vec<PortStatistics>),
    Flows(Flows),
}

/// What the datapath's own threads tell.
enum Told {
    Worker(u16, WorkerEvent),
    Link(PortId, LinkState),
}

/// What the threads share.
struct Shared {
    datapath: Mutex<Datapath<Attachments>>,
    /// Where events go; answers go the same way, so that messages never mix.
    control: Mutex<Option<Link>>,
    captures: Captures,
    /// How the workers run.
    wanted: Wanted,
}

impl Shared {
    fn datapath(&self) -> MutexGuard<'_, Datapath<Attachments>> {
        self.datapath.lock().expect("no command panics half-way")
    }

    fn control(&self) -> MutexGuard<'_, Option<Link>> {
        self.control.lock().expect("sending does not panic")
    }

    fn accept(&self, listener: &UnixListener, counted: &mpsc::Receiver<(u16, Counted)>) {
        for stream in listener.incoming() {
            let served = stream.map_err(LinkError::Io).and_then(|stream| {
                if !is_own_user(&stream) {
                    tracing::warn!("a stranger connected and was turned away");
                    return Ok(());
                }
                self.serve(stream, counted)
            });
            if let Err(error) = served {
                tracing::warn!(%error, "the link to control has ended");
                // A descriptor shortage would make accept fail at once, for ever.
                thread::sleep(Duration::from_millis(10));
            }
        }
    }

    /// Serves one control until it goes.
    fn serve(
        &self,
        stream: UnixStream,
        counted: &mpsc::Receiver<(u16, Counted)>,
    ) -> Result<(), LinkError> {
        stream.set_write_timeout(Some(WRITE_PATIENCE))?;
        let link = Link::new(stream);
        *self.control() = Some(link.try_clone()?);
        let result = self.converse(&link, counted);
        *self.control() = None;
        result
    }

    fn converse(
        &self,
        link: &Link,
        counted: &mpsc::Receiver<(u16, Counted)>,
    ) -> Result<(), LinkError> {
        while let Some(message) = link.receive()? {
            let (answer, descriptor) = match serde_json::from_slice::<Command>(&message.body) {
                Ok(Command::TakeListener { forward }) => taken(self.datapath().listener(forward)),
                Ok(Command::TakeSocket { port }) => taken(self.datapath().socket(port)),
                Ok(command) => (self.answer(command, message.descriptors, counted), None),
                Err(error) => (Answer::Refused { reason: format!("not a command: {error}") }, None),
            };
            if let Some(link) = &*self.control() {
                link.send(&answer, descriptor.as_ref().map(AsFd::as_fd).as_slice())?;
            }
        }
        Ok(())
    }

    fn answer(
        &self,
        command: Command,
        descriptors: Vec<OwnedFd>,
        counted: &mpsc::Receiver<(u16, Counted)>,
    ) -> Answer {
        match command {
            Command::Hello { protocol, version } => hello(protocol, &version, self.wanted),
            Command::Inventory => Answer::Inventory(self.datapath().inventory()),
            Command::Statistics => {
                let parts = self.count(counted, Datapath::request_statistics, |it| match it {
                    Counted::Statistics(ports) => Some(ports),
                    Counted::Flows(_) => None,
                });
                match parts {
                    Some(parts) => Answer::Statistics(Statistics { ports: parts.concat() }),
                    None => late(),
                }
            }
            Command::Flows { port } => {
                let parts = self.count(
                    counted,
                    |it| it.request_flows(port),
                    |it| match it {
                        Counted::Flows(flows) => Some(flows),
                        Counted::Statistics(_) => None,
                    },
                );
                parts.map_or_else(late, |parts| Answer::Flows(Flows::joined(parts)))
            }
            Command::Capture(spec) => self.capture(spec, descriptors.into_iter().next()),
            command => {
                let mut datapath = self.datapath();
                if let Command::RemoveNetwork { network } = &command {
                    self.captures.handle_network_gone(*network);
                }
                // A port that was there before keeps who records it.
                let newcomer = match &command {
                    Command::SetPort(port) if datapath.port(port.id).is_none() => Some(port.id),
                    _ => None,
                };
                match datapath.handle_command(command, descriptors) {
                    Ok(()) => {
                        newcomer.into_iter().for_each(|port| self.record(&datapath, port));
                        Answer::Done
                    }
                    Err(CommandError::Busy(_)) => Answer::Busy,
                    Err(error) => Answer::Refused { reason: chain(&error) },
                }
            }
        }
    }

    /// Asks the workers, and answers with what each tells, should all do so in time.
    fn count<T>(
        &self,
        counted: &mpsc::Receiver<(u16, Counted)>,
        request: impl FnOnce(&Datapath<Attachments>),
        pick: impl Fn(Counted) -> Option<T>,
    ) -> Option<Vec<T>> {
        // What came too late for an earlier question.
        while counted.try_recv().is_ok() {}
        let workers = {
            let datapath = self.datapath();
            request(&datapath);
            datapath.workers()
        };
        let deadline = Instant::now() + WORKER_PATIENCE;
        let mut parts = BTreeMap::new();
        while parts.len() < usize::from(workers) {
            let left = deadline.saturating_duration_since(Instant::now());
            let (worker, counted) = counted.recv_timeout(left).ok()?;
            // Of two answers of one worker the second is to this question.
            if let Some(part) = pick(counted) {
                parts.insert(worker, part);
            }
        }
        Some(parts.into_values().collect())
    }

    fn capture(&self, spec: CaptureSpec, pipe: Option<OwnedFd>) -> Answer {
        let Some(pipe) = pipe else {
            return Answer::Refused { reason: chain(&CommandError::NoDescriptor) };
        };
        let datapath = self.datapath();
        let inventory = datapath.inventory();
        let ports = inventory.ports.iter();
        let members = ports.filter_map(|port| member(port, &inventory.networks));
        match self.captures.begin(spec, members, pipe) {
            Ok(recorders) => {
                for (port, recorder) in recorders {
                    datapath.record(port, Box::new(recorder));
                }
                Answer::Done
            }
            Err(error) => Answer::Refused { reason: chain(&error) },
        }
    }

    /// Has a port recorded, which has just come, by the captures that it belongs to.
    fn record(&self, datapath: &Datapath<Attachments>, port: PortId) {
        if self.captures.is_complete() {
            return;
        }
        let inventory = datapath.inventory();
        let Some(port) = inventory.ports.iter().find(|it| it.id == port) else { return };
        let Some(member) = member(port, &inventory.networks) else { return };
        for recorder in self.captures.handle_newcomer(&member) {
            datapath.record(port.id, Box::new(recorder));
        }
    }

    fn forward_events(&self, told: &mpsc::Receiver<Told>, counts: &mpsc::Sender<(u16, Counted)>) {
        for told in told {
            let (worker, event) = match told {
                Told::Worker(worker, event) => (worker, event),
                Told::Link(port, state) => {
                    let event = self.datapath().handle_link(port, state);
                    event.into_iter().for_each(|event| self.tell(&event));
                    continue;
                }
            };
            match event {
                WorkerEvent::Statistics(ports) => {
                    // Nobody waits any more when it came too late.
                    let _ = counts.send((worker, Counted::Statistics(ports)));
                }
                WorkerEvent::Flows(flows) => {
                    let _ = counts.send((worker, Counted::Flows(flows)));
                }
                WorkerEvent::Load(load) => self.datapath().handle_load(worker, &load),
                WorkerEvent::SlotLost { slot, port } => {
                    self.datapath().handle_slot_lost(slot, port);
                }
                WorkerEvent::WrongMac { port, used } => {
                    let event = self.datapath().handle_wrong_mac(port, used);
                    event.into_iter().for_each(|event| self.tell(&event));
                }
                WorkerEvent::Addresses { port, used } => {
                    self.datapath().handle_addresses(port, used);
                }
                WorkerEvent::RightMac { port } => {
                    let event = self.datapath().handle_link(port, LinkState::Connected);
                    event.into_iter().for_each(|event| self.tell(&event));
                }
                WorkerEvent::Event(event) => self.tell(&event),
            }
        }
    }

    /// Tells control, if there is one.
    fn tell(&self, event: &Event) {
        let mut control = self.control();
        let failed = control.as_ref().is_some_and(|link| link.send(event, &[]).is_err());
        if failed && let Some(link) = control.take() {
            link.close();
        }
    }
}

fn late() -> Answer {
    Answer::Refused { reason: "a worker did not answer in time".into() }
}

/// The answer that hands a descriptor over, or says why not.
fn taken(result: Result<OwnedFd, CommandError>) -> (Answer, Option<OwnedFd>) {
    match result {
        Ok(descriptor) => (Answer::Done, Some(descriptor)),
        Err(error) => (Answer::Refused { reason: chain(&error) }, None),
    }
}

fn hello(protocol: u32, version: &str, wanted: Wanted) -> Answer {
    if protocol == PROTOCOL {
        let pid = std::process::id();
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let Wanted { workers, busy_poll_us } = wanted;
        return Answer::Hello { protocol: PROTOCOL, version, pid, workers, busy_poll_us };
    }
    let reason = format!(
        "control {version} speaks protocol {protocol}, this datapath speaks {PROTOCOL}; \
         run `lichen daemon restart --datapath`"
    );
    Answer::Refused { reason }
}

fn is_own_user(stream: &UnixStream) -> bool {
    rustix::net::sockopt::socket_peercred(stream)
        .is_ok_and(|peer| peer.uid == rustix::process::getuid())
}
