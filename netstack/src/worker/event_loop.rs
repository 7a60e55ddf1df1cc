//! Drives a [`Worker`] with real time, real sockets and epoll.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};

use super::busy_poll::BusyPoll;
use super::crossing::{Doorbell, Links};
use super::wake_up::WakeUp;
use super::{Worker, WorkerCommand, WorkerEvent};
use crate::gateway::names::NameService;
use crate::host::sys::SysHost;
use crate::host::{Readiness, Token, TokenKind};
use crate::port::Port;
use crate::port::watch::FrameWatch;
use crate::time::Instant;

/// How often a worker tells how busy it was.
const SECOND: Duration = Duration::from_secs(1);
/// Of a thousand: one that was less busy tells nothing more before it is woken.
const AS_GOOD_AS_IDLE: u16 = 50;
/// A wait that only looks.
const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
/// Events taken from epoll at once.
const MAX_EVENTS: usize = 256;

/// The control thread's end of a running worker.
pub struct WorkerHandle<P> {
    commands: mpsc::Sender<WorkerCommand<P, SysHost>>,
    wake: Arc<OwnedFd>,
    poller: Arc<OwnedFd>,
}

impl<P> Clone for WorkerHandle<P> {
    fn clone(&self) -> Self {
        Self {
            commands: self.commands.clone(),
            wake: Arc::clone(&self.wake),
            poller: Arc::clone(&self.poller),
        }
    }
}

impl<P> WorkerHandle<P> {
    /// Gives the worker a command. The descriptors of a port must have been [watched](Self::frame_watch) before.
    pub fn send(&self, command: WorkerCommand<P, SysHost>) {
        // A worker that has ended takes no commands, and its end is noticed by who joined it.
        if self.commands.send(command).is_ok() {
            let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
        }
    }

    /// Where a port in `slot` has its descriptors watched, for one that does so itself.
    pub fn frame_watch(&self, slot: u16) -> FrameWatch {
        FrameWatch::new(Arc::clone(&self.poller), slot)
    }

    /// Ends what a [`FrameWatch`] began, for a descriptor that others hold open too.
    pub fn unwatch(&self, frames: BorrowedFd<'_>) {
        // One that was never watched, or is closed everywhere, is not watched now.
        let _ = epoll::delete(&*self.poller, frames);
    }
}

/// A worker about to run.
pub struct WorkerLoop<P: Port, N> {
    worker: Worker<P, SysHost, N>,
    commands: mpsc::Receiver<WorkerCommand<P, SysHost>>,
    wake: Arc<OwnedFd>,
    /// Rung by the other workers.
    bell: Arc<Doorbell>,
    poller: Arc<OwnedFd>,
    wake_up: WakeUp,
    start: std::time::Instant,
    meter: Meter,
    busy_poll: BusyPoll,
}

/// What a worker did after it had waited, or looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Worked,
    FoundNothing,
}

/// How much of a worker's time is work.
struct Meter {
    since: Instant,
    work: Duration,
    /// How busy it was when that was last told.
    told: u16,
}

impl Meter {
    /// Work has been done until `now`. Answers how busy the worker was, once a second.
    fn add(&mut self, work: Duration, now: Instant) -> Option<u16> {
        self.work += work;
        let passed = now.since(self.since);
        if passed < SECOND {
            return None;
        }
        let busy = 1000 * self.work.as_micros() / passed.as_micros().max(1);
        self.told = u16::try_from(busy.min(1000)).expect("at most a thousand");
        self.since = now;
        self.work = Duration::ZERO;
        Some(self.told)
    }

    /// When it has to be told, although nothing happens: one that was busy is idle now.
    fn poll_timeout(&self) -> Option<Instant> {
        (self.told >= AS_GOOD_AS_IDLE).then(|| self.since + SECOND)
    }
}

impl<P: Port, N: NameService> WorkerLoop<P, N> {
    /// One worker for each name service and seed, with their handles; frames cross between them. Seeds must be
    /// unpredictable; `descriptors` is how many host sockets the flows of all together may hold.
    pub fn prepare(
        parts: Vec<(N, u64)>,
        descriptors: usize,
    ) -> io::Result<(Vec<Self>, Vec<WorkerHandle<P>>)> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let wakes: Vec<Arc<OwnedFd>> =
            parts.iter().map(|_| Ok(Arc::new(eventfd(0, flags)?))).collect::<io::Result<_>>()?;
        let bells: Vec<Arc<Doorbell>> =
            wakes.iter().map(|wake| Arc::new(Doorbell::new(Some(Arc::clone(wake))))).collect();
        // One for all: a port that moves brings its times along.
        #[expect(clippy::disallowed_methods, reason = "this is the clock that all else is told of")]
        let start = std::time::Instant::now();
        let (mut loops, mut handles) = (Vec::new(), Vec::new());
        let ends = Links::between(&bells).into_iter().zip(bells).zip(wakes);
        for ((names, seed), ((links, bell), wake)) in parts.into_iter().zip(ends) {
            let poller = Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC)?);
            let data =
                |kind| epoll::EventData::new_u64(Token { port: 0, kind, index: 0 }.to_bits());
            epoll::add(&*poller, &*wake, data(TokenKind::Commands), epoll::EventFlags::IN)?;
            let wake_up = WakeUp::new()?;
            let each_time = epoll::EventFlags::IN | epoll::EventFlags::ET;
            epoll::add(&*poller, &wake_up, data(TokenKind::Time), each_time)?;
            let (sender, commands) = mpsc::channel();
            let host = SysHost::new(Arc::clone(&poller))?;
            let worker = Worker::new(host, names, seed, descriptors).linked(links);
            handles.push(WorkerHandle {
                commands: sender,
                wake: Arc::clone(&wake),
                poller: Arc::clone(&poller),
            });
            let meter = Meter { since: Instant::START, work: Duration::ZERO, told: 0 };
            let busy_poll = BusyPoll::new(Duration::ZERO);
            loops.push(Self {
                worker,
                commands,
                wake,
                bell,
                poller,
                wake_up,
                start,
                meter,
                busy_poll,
            });
        }
        Ok((loops, handles))
    }

    /// The same, but it goes on looking for so long after its last work before it sleeps.
    pub fn busy_polling(mut self, period: Duration) -> Self {
        self.busy_poll = BusyPoll::new(period);
        if self.busy_poll.is_on() {
            self.worker = self.worker.polling_ports();
        }
        self
    }

    /// Runs until it is told to stop. `tell` gets what control should hear, and must not wait.
    pub fn run(mut self, mut tell: impl FnMut(WorkerEvent)) -> io::Result<()> {
        let mut events = Vec::with_capacity(MAX_EVENTS);
        while !self.worker.is_stopped() {
            let timeout = if self.may_wait()? { None } else { Some(&AT_ONCE) };
            events.clear();
            match epoll::wait(&*self.poller, spare_capacity(&mut events), timeout) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            self.bell.end_waiting();
            let now = self.now();
            let mut found = !events.is_empty() || self.worker.has_crossings();
            self.worker.handle_crossings();
            found |= self.worker.poll_ports(now);
            for event in &events {
                let Some(token) = Token::from_bits(event.data.u64()) else { continue };
                match token.kind {
                    TokenKind::Commands => self.handle_commands(now),
                    TokenKind::Time => self.wake_up.handle_expired(),
                    _ => self.worker.handle_ready(now, token, readiness(event.flags)),
                }
            }
            let is_due =
                self.worker.is_busy() || self.worker.poll_timeout().is_some_and(|at| at <= now);
            if is_due {
                self.worker.handle_timeout(now);
            }
            let turn = if found || is_due { Turn::Worked } else { Turn::FoundNothing };
            self.end_turn(now, turn);
            while let Some(event) = self.worker.poll_event() {
                tell(event);
            }
        }
        Ok(())
    }

    /// Whether to wait for something to happen, rather than to look whether it has. It is woken when time is up.
    fn may_wait(&mut self) -> io::Result<bool> {
        if self.worker.is_busy() || self.busy_poll.is_on() && self.busy_poll.goes_on(self.now()) {
            // The other workers need not ring: what they send is looked for.
            return Ok(false);
        }
        self.worker.end_polling();
        if self.worker.is_busy() {
            return Ok(false);
        }
        let timeouts = self.worker.poll_timeout().into_iter().chain(self.meter.poll_timeout());
        if let Some(at) = timeouts.min() {
            self.wake_up.not_after(at, self.now())?;
        }
        self.bell.begin_waiting();
        Ok(!self.worker.has_crossings())
    }

    /// A turn has begun at `now`, and ends.
    fn end_turn(&mut self, now: Instant, turn: Turn) {
        if turn == Turn::Worked && self.busy_poll.is_on() {
            self.busy_poll.note_work(self.now());
        }
        if self.worker.has_others() {
            let end = self.now();
            let work = match turn {
                Turn::Worked => end.since(now),
                Turn::FoundNothing => Duration::ZERO,
            };
            if let Some(busy) = self.meter.add(work, end) {
                self.worker.handle_second(busy);
            }
        }
    }

    fn handle_commands(&mut self, now: Instant) {
        let mut count = [0; 8];
        let _ = rustix::io::read(&*self.wake, &mut count);
        while let Ok(command) = self.commands.try_recv() {
            self.worker.handle_command(now, command);
        }
    }

    fn now(&self) -> Instant {
        Instant::START + self.start.elapsed()
    }
}

fn readiness(flags: epoll::EventFlags) -> Readiness {
    use epoll::EventFlags as Flags;
    let ended = flags.intersects(Flags::ERR | Flags::HUP);
    let beyond_data = ended || flags.intersects(Flags::RDHUP | Flags::PRI);
    Readiness {
        readable: beyond_data || flags.contains(Flags::IN),
        writable: ended || flags.contains(Flags::OUT),
        beyond_data,
    }
}
