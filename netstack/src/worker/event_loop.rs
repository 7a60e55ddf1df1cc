//! Drives a [`Worker`] with real time, real sockets and epoll.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};

use super::{Worker, WorkerCommand, WorkerEvent};
use crate::gateway::names::NameService;
use crate::host::sys::{SysHost, SysPublishedSocket};
use crate::host::{Readiness, Token, TokenKind};
use crate::port::Port;
use crate::port::watch::FrameWatch;
use crate::time::Instant;

/// Events taken from epoll at once.
const MAX_EVENTS: usize = 256;

/// The control thread's end of a running worker.
pub struct WorkerHandle<P> {
    commands: mpsc::Sender<WorkerCommand<P, SysPublishedSocket>>,
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
    /// Gives the worker a command. The descriptors of a port must have been [watched](Self::watch) before.
    pub fn send(&self, command: WorkerCommand<P, SysPublishedSocket>) {
        // A worker that has ended takes no commands, and its end is noticed by who joined it.
        if self.commands.send(command).is_ok() {
            let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
        }
    }

    /// Where a port in `slot` has its descriptors watched, for one that does so itself.
    pub fn frame_watch(&self, slot: u16) -> FrameWatch {
        FrameWatch::new(Arc::clone(&self.poller), slot)
    }

    /// Lets the worker hear when `frames` becomes readable (each time anew), which belongs to a port that
    /// will be put into `slot`. Closing the descriptor everywhere ends it.
    pub fn watch(&self, frames: BorrowedFd<'_>, slot: u16) -> io::Result<()> {
        Ok(self.frame_watch(slot).begin(frames)?)
    }

    /// Ends what [`watch`](Self::watch) began, for a descriptor that others hold open too.
    pub fn unwatch(&self, frames: BorrowedFd<'_>) {
        // One that was never watched, or is closed everywhere, is not watched now.
        let _ = epoll::delete(&*self.poller, frames);
    }
}

/// A worker about to run.
pub struct WorkerLoop<P: Port, N> {
    worker: Worker<P, SysHost, N>,
    commands: mpsc::Receiver<WorkerCommand<P, SysPublishedSocket>>,
    wake: Arc<OwnedFd>,
    poller: Arc<OwnedFd>,
    start: std::time::Instant,
}

impl<P: Port, N: NameService> WorkerLoop<P, N> {
    /// A worker with its handle. `seed` must be unpredictable; `descriptors` is how many host sockets all
    /// flows together may hold.
    pub fn new(names: N, seed: u64, descriptors: usize) -> io::Result<(Self, WorkerHandle<P>)> {
        let poller = Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC)?);
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let token = Token { port: 0, kind: TokenKind::Commands, index: 0 };
        let data = epoll::EventData::new_u64(token.to_bits());
        epoll::add(&*poller, &*wake, data, epoll::EventFlags::IN)?;
        let (sender, commands) = mpsc::channel();
        let worker = Worker::new(SysHost::new(Arc::clone(&poller))?, names, seed, descriptors);
        let handle =
            WorkerHandle { commands: sender, wake: Arc::clone(&wake), poller: Arc::clone(&poller) };
        #[expect(clippy::disallowed_methods, reason = "this is the clock that all else is told of")]
        let start = std::time::Instant::now();
        Ok((Self { worker, commands, wake, poller, start }, handle))
    }

    /// Runs until it is told to stop. `tell` gets what control should hear, and must not wait.
    pub fn run(mut self, mut tell: impl FnMut(WorkerEvent)) -> io::Result<()> {
        let mut events = Vec::with_capacity(MAX_EVENTS);
        while !self.worker.is_stopped() {
            let timeout = self.timeout();
            events.clear();
            match epoll::wait(&*self.poller, spare_capacity(&mut events), timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let now = self.now();
            for event in &events {
                let Some(token) = Token::from_bits(event.data.u64()) else { continue };
                if token.kind == TokenKind::Commands {
                    self.handle_commands(now);
                } else {
                    self.worker.handle_ready(now, token, readiness(event.flags));
                }
            }
            if self.worker.is_busy() || self.worker.poll_timeout().is_some_and(|at| at <= now) {
                self.worker.handle_timeout(now);
            }
            while let Some(event) = self.worker.poll_event() {
                tell(event);
            }
        }
        Ok(())
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

    fn timeout(&self) -> Option<Timespec> {
        if self.worker.is_busy() {
            return Some(timespec(Duration::ZERO));
        }
        self.worker.poll_timeout().map(|at| timespec(at.since(self.now())))
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}

fn readiness(flags: epoll::EventFlags) -> Readiness {
    use epoll::EventFlags as Flags;
    let ended = flags.intersects(Flags::ERR | Flags::HUP);
    Readiness {
        readable: ended || flags.intersects(Flags::IN | Flags::RDHUP),
        writable: ended || flags.contains(Flags::OUT),
    }
}
