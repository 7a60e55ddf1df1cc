//! The thread that owns the datapath: starts or adopts it, keeps the link, and syncs.
//!
//! It reacts to four things: somebody changed the state, the resolvers changed, the datapath said
//! something, the datapath ended. After each it compares and applies everything again, so a thing
//! forgotten once is not forgotten for ever.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use lichen_api::{DatapathState, StopScope};
use lichen_netstack::command::{
    Answer, CaptureSpec, Command, Event, Flows, LinkState, PortLink, Statistics,
};
use lichen_netstack::ids::PortId;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, pidfd_send_signal};
use tokio::sync::oneshot;

use super::apply::{Applier, Outcome};
use super::observed::Observed;
use crate::causes::chain;
use crate::state::{Store, readdress_workload, snapshot};
use crate::wiring::datapath_link::{AskError, DatapathLink, Unasked};
use crate::wiring::datapath_process::{DatapathSource, Origin};
use crate::wiring::link::Link;
use crate::wiring::listeners::Listeners;
use crate::wiring::namespaces::Namespaces;
use crate::wiring::vm_sockets::VmSockets;

/// First and longest pause between two attempts at the same thing.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// A datapath that lived that long was a good one: the next is started without a pause.
const GOOD_LIFE: Duration = Duration::from_secs(5);

/// How long a datapath may take to end by itself.
const END_PATIENCE: Timespec = Timespec { tv_sec: 3, tv_nsec: 0 };

enum Input {
    Sync(oneshot::Sender<()>),
    Resolvers(Vec<SocketAddr>),
    Unasked(u64, Unasked),
    Question(Command, Option<OwnedFd>, oneshot::Sender<Answer>),
    Stop(StopScope, oneshot::Sender<()>),
}

/// A handle on the worker. Clones share it.
#[derive(Clone)]
pub struct Reconciler {
    inputs: Sender<Input>,
}

impl Reconciler {
    /// Compares and applies, and returns when that was tried once; [`Observed`] tells what came of it.
    pub async fn sync(&self) {
        let (done, tried) = oneshot::channel();
        if self.inputs.send(Input::Sync(done)).is_ok() {
            // Dropped unanswered when the worker stops.
            let _ = tried.await;
        }
    }

    /// Names the host's resolvers. Answers false when the worker has stopped.
    pub fn set_resolvers(&self, resolvers: Vec<SocketAddr>) -> bool {
        self.inputs.send(Input::Resolvers(resolvers)).is_ok()
    }

    /// What the datapath has counted; `None` when it does not answer.
    pub async fn statistics(&self) -> Option<Statistics> {
        match self.question(Command::Statistics, None).await {
            Some(Answer::Statistics(statistics)) => Some(statistics),
            _ => None,
        }
    }

    /// The flows of a port, or of all; `None` when the datapath does not answer.
    pub async fn flows(&self, port: Option<PortId>) -> Option<Flows> {
        match self.question(Command::Flows { port }, None).await {
            Some(Answer::Flows(flows)) => Some(flows),
            _ => None,
        }
    }

    /// Has frames written into a pipe, or says why not.
    pub async fn capture(&self, spec: CaptureSpec, pipe: OwnedFd) -> Result<(), String> {
        match self.question(Command::Capture(spec), Some(pipe)).await {
            Some(Answer::Done) => Ok(()),
            Some(Answer::Refused { reason }) => Err(reason),
            _ => Err("the datapath does not answer; see: lichen status".to_owned()),
        }
    }

    /// Has a guest of a port served by a descriptor that was passed.
    pub async fn plug(&self, port: PortId, descriptor: OwnedFd) -> Result<(), NotPlugged> {
        match self.question(Command::Plug { port }, Some(descriptor)).await {
            Some(Answer::Done) => Ok(()),
            Some(Answer::Busy) => Err(NotPlugged::Busy),
            Some(Answer::Refused { reason }) => Err(NotPlugged::Refused(reason)),
            _ => Err(NotPlugged::NoDatapath),
        }
    }

    /// Asks what changes nothing of what should be; `None` when there is no datapath to answer.
    async fn question(&self, command: Command, descriptor: Option<OwnedFd>) -> Option<Answer> {
        let (answer, receiver) = oneshot::channel();
        self.inputs.send(Input::Question(command, descriptor, answer)).ok()?;
        receiver.await.ok()
    }

    /// Ends the worker, and the datapath when the scope says so.
    pub async fn stop(&self, scope: StopScope) {
        let (done, stopped) = oneshot::channel();
        if self.inputs.send(Input::Stop(scope, done)).is_ok() {
            let _ = stopped.await;
        }
    }
}

/// Why a guest is not served by a descriptor that was passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotPlugged {
    /// Another one is there.
    Busy,
    /// The datapath would not have it: why.
    Refused(String),
    /// The datapath does not answer.
    NoDatapath,
}

/// What the worker works with.
pub struct Worker {
    /// What should be.
    pub store: Store,
    /// Where datapaths come from.
    pub source: Box<dyn DatapathSource>,
    /// Where taps come from.
    pub namespaces: Arc<dyn Namespaces>,
    /// Where listeners come from.
    pub listeners: Arc<Listeners>,
    /// Where the sockets of virtual machines come from.
    pub vm_sockets: Arc<VmSockets>,
    /// Where it is told what came of it.
    pub observed: Arc<Observed>,
    /// The host's resolvers at the start.
    pub resolvers: Vec<SocketAddr>,
}

impl Worker {
    /// Starts the thread.
    pub fn start(self) -> std::io::Result<Reconciler> {
        let (inputs, queue) = std::sync::mpsc::channel();
        let own = inputs.clone();
        self.observed.lock().resolvers.clone_from(&self.resolvers);
        std::thread::Builder::new().name("reconciler".to_owned()).spawn(move || {
            let mut running = Running {
                worker: self,
                inputs: own,
                connection: None,
                last_pidfd: None,
                generation: 0,
                pause: Duration::ZERO,
                due: Some(Instant::now()),
                waiting: Vec::new(),
            };
            running.run(&queue);
        })?;
        Ok(Reconciler { inputs })
    }
}

struct Running {
    worker: Worker,
    inputs: Sender<Input>,
    connection: Option<Connection>,
    /// The latest datapath's process, greeted or not.
    last_pidfd: Option<OwnedFd>,
    /// Counts connections, so that news of an old one are told apart.
    generation: u64,
    /// The pause after the next failure.
    pause: Duration,
    /// When to try next; `None` when nothing is to be done.
    due: Option<Instant>,
    /// Told after the next try.
    waiting: Vec<oneshot::Sender<()>>,
}

struct Connection {
    applier: Applier,
    since: Instant,
}

/// Whether the loop goes on.
#[derive(PartialEq, Eq)]
enum Flow {
    Continue,
    Stop,
}

impl Running {
    fn run(&mut self, queue: &Receiver<Input>) {
        loop {
            if self.due.is_some_and(|due| due <= Instant::now()) {
                self.attempt();
            }
            let received = match self.due {
                Some(due) => queue.recv_timeout(due.saturating_duration_since(Instant::now())),
                None => queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match received {
                Ok(input) => {
                    if self.handle(input) == Flow::Stop {
                        return;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn handle(&mut self, input: Input) -> Flow {
        match input {
            Input::Sync(done) => {
                // While a datapath is being waited for, a request neither shortens the pause nor waits.
                if self.connection.is_some() || self.due.is_none() {
                    self.waiting.push(done);
                    self.due = Some(Instant::now());
                } else {
                    let _ = done.send(());
                }
            }
            Input::Resolvers(resolvers) => {
                tracing::info!(?resolvers, "the host's resolvers changed");
                self.worker.observed.lock().resolvers.clone_from(&resolvers);
                self.worker.resolvers = resolvers;
                if self.connection.is_some() {
                    self.due = Some(Instant::now());
                }
            }
            Input::Unasked(generation, _) if generation != self.generation => {}
            Input::Unasked(_, Unasked::Closed) => self.lose("the datapath closed the link"),
            Input::Unasked(_, Unasked::Event(event)) => self.handle_event(event),
            Input::Question(command, descriptor, answer) => {
                // Dropped unanswered when there is no datapath; who asked may have gone.
                if let Some(said) = self.question(&command, descriptor) {
                    let _ = answer.send(said);
                }
            }
            Input::Stop(scope, done) => {
                if scope == StopScope::Everything {
                    self.stop_datapath();
                }
                let _ = done.send(());
                return Flow::Stop;
            }
        }
        Flow::Continue
    }

    fn handle_event(&mut self, event: Event) {
        match event {
            Event::PortLost { port, reason } => {
                tracing::warn!(%port, reason, "port lost");
                if let Some(connection) = &mut self.connection {
                    connection.applier.forget_port(port, &reason);
                    // Its workload is probably ending; if it is not, the port is made anew.
                    self.due = Some(Instant::now() + FIRST_PAUSE);
                }
            }
            Event::Link(PortLink { port, state }) => {
                match &state {
                    LinkState::Trouble { reason } => {
                        tracing::warn!(%port, reason, "link in trouble");
                    }
                    state => {
                        tracing::info!(%port, ?state, "link");
                    }
                }
                self.worker.observed.lock().links.insert(port, state);
                // Its published ports follow.
                if self.connection.is_some() {
                    self.due = Some(Instant::now());
                }
            }
            Event::AddressDeclined { port, address } => self.replace_address(port, address),
            Event::Refusal { port, asked, rule, suppressed } => {
                tracing::info!(%port, asked, rule, suppressed, "refused");
            }
        }
    }

    /// Gives a port another address: first in the state, then in the datapath.
    fn replace_address(&mut self, port: PortId, declined: Ipv4Addr) {
        let replaced =
            self.worker.store.transact_blocking(move |tx| readdress_workload(tx, port, declined));
        match replaced {
            Ok(Some(address)) => {
                tracing::warn!(%port, %declined, %address, "an address was declined and replaced");
                self.due = Some(Instant::now());
            }
            // Said twice, or too late.
            Ok(None) => {}
            Err(error) => {
                let reason = chain(&error);
                tracing::error!(%port, %declined, reason, "a declined address is not replaced");
            }
        }
    }

    /// Connects if need be, then makes everything as it should be.
    fn attempt(&mut self) {
        self.due = None;
        if self.connection.is_none() {
            match self.connect() {
                Ok(connection) => self.connection = Some(connection),
                Err(reason) => {
                    tracing::error!(reason, "no datapath");
                    self.lose(&reason);
                    return self.tell_waiting();
                }
            }
        }
        match self.sync() {
            Ok(Outcome::Settled) => {
                if self.connection.as_ref().is_some_and(|c| c.since.elapsed() >= GOOD_LIFE) {
                    self.pause = Duration::ZERO;
                }
            }
            Ok(Outcome::Unsettled) => self.try_later(),
            Err(reason) => self.lose(&reason),
        }
        self.tell_waiting();
    }

    fn sync(&mut self) -> Result<Outcome, String> {
        let wanted =
            self.worker.store.transact_blocking(snapshot).map_err(|error| chain(&error))?;
        let connection = self.connection.as_mut().expect("attempt has just connected");
        connection.applier.sync(&wanted, &self.worker.resolvers).map_err(|error| chain(&error))
    }

    fn connect(&mut self) -> Result<Connection, String> {
        let connected = self.worker.source.connect().map_err(|error| chain(&error))?;
        self.last_pidfd = connected.pidfd;
        self.generation += 1;
        let (generation, inputs) = (self.generation, self.inputs.clone());
        let greeted = DatapathLink::greet(Link::new(connected.stream), move |unasked| {
            let _ = inputs.send(Input::Unasked(generation, unasked));
        });
        let (link, greeting) = greeted.map_err(|error| self.give_up(&error))?;
        let applier = Applier::new(
            link,
            Arc::clone(&self.worker.namespaces),
            Arc::clone(&self.worker.listeners),
            Arc::clone(&self.worker.vm_sockets),
            Arc::clone(&self.worker.observed),
        )
        .map_err(|error| self.give_up(&error))?;
        let origin = connected.origin;
        tracing::info!(
            pid = greeting.pid,
            version = greeting.version,
            ?origin,
            "datapath connected"
        );
        let mut seen = self.worker.observed.lock();
        if origin == Origin::Started && self.generation > 1 {
            seen.datapath.restarts += 1;
        }
        seen.datapath.state = DatapathState::Running {
            pid: greeting.pid,
            version: greeting.version,
            workers: greeting.workers,
            busy_poll_us: greeting.busy_poll_us,
        };
        drop(seen);
        Ok(Connection { applier, since: Instant::now() })
    }

    /// A datapath that is there but does not speak is in the way of the next; one that speaks other
    /// words carries traffic and stays until it is told to go.
    fn give_up(&self, error: &AskError) -> String {
        if let (AskError::TimedOut, Some(pidfd)) = (error, &self.last_pidfd) {
            tracing::error!("the datapath hangs and is killed");
            let _ = pidfd_send_signal(pidfd, Signal::KILL);
        }
        chain(error)
    }

    /// The link is of no use any more.
    fn lose(&mut self, reason: &str) {
        if let Some(connection) = self.connection.take() {
            tracing::warn!(reason, "datapath lost");
            if connection.since.elapsed() >= GOOD_LIFE {
                self.pause = Duration::ZERO;
            }
            // Until its process has really ended, connecting would find it again.
            if let Some(pidfd) = &self.last_pidfd {
                let _ = wait_for_end(pidfd, Timespec { tv_sec: 1, tv_nsec: 0 });
            }
        }
        let mut seen = self.worker.observed.lock();
        seen.datapath.state = DatapathState::Starting { reason: Some(reason.to_owned()) };
        seen.ports.clear();
        seen.links.clear();
        seen.forwards.clear();
        drop(seen);
        self.try_later();
    }

    fn try_later(&mut self) {
        self.due = Some(Instant::now() + self.pause);
        self.pause = (self.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
    }

    fn tell_waiting(&mut self) {
        for done in self.waiting.drain(..) {
            let _ = done.send(());
        }
    }

    fn question(&mut self, command: &Command, descriptor: Option<OwnedFd>) -> Option<Answer> {
        let connection = self.connection.as_mut()?;
        let descriptor = descriptor.as_ref().map(AsFd::as_fd);
        match connection.applier.link().ask(command, descriptor.as_slice()) {
            Ok(answer) => {
                if let Answer::Refused { reason } = &answer {
                    tracing::warn!(?command, reason, "the datapath refused");
                }
                Some(answer)
            }
            Err(error) => {
                self.lose(&chain(&error));
                None
            }
        }
    }

    fn stop_datapath(&mut self) {
        // It may close before it answers. One that never understood us cannot be told.
        let told = self.connection.take().is_some_and(|mut connection| {
            matches!(
                connection.applier.link().ask(&Command::Stop, &[]),
                Ok(Answer::Done) | Err(AskError::Closed)
            )
        });
        let Some(pidfd) = self.last_pidfd.take() else { return };
        if !(told && wait_for_end(&pidfd, END_PATIENCE)) {
            tracing::warn!("the datapath did not end by itself and is killed");
            let _ = pidfd_send_signal(&pidfd, Signal::KILL);
            wait_for_end(&pidfd, END_PATIENCE);
        }
    }
}

fn wait_for_end(pidfd: &OwnedFd, patience: Timespec) -> bool {
    poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&patience)).is_ok_and(|ready| ready > 0)
}
