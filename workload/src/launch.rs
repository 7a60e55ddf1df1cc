//! The launcher's side of a workload's life: start, release, wait.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions};

use crate::channel::Channel;
use crate::conversation::{FromSupervisor, ToSupervisor};
use crate::launch_error::LaunchError;
use crate::process_identity::start_time_of;
use crate::role::Role;
use crate::signals::{FORWARDED, Sender, Signals, ignore_ttou};
use crate::spec::LaunchSpec;
use crate::supervisor::exit_code;
use crate::terminal::{self, TerminalUse};

/// Makes a workload's namespaces and leaves its supervisor waiting in them, before COMMAND.
///
/// Blocks for some milliseconds. The caller's environment, working directory and resource limits are
/// COMMAND's, and descriptors 0 to 2 unless `spec.log` detaches it.
pub fn launch(spec: &LaunchSpec) -> Result<Launched, LaunchError> {
    if spec.command.is_empty() {
        return Err(LaunchError::NoCommand);
    }
    let log = spec.log.as_deref().map(open_log).transpose()?;
    let (mut first_stage, channel) = Role::Supervise.start()?;
    let start = ToSupervisor::Start(spec.clone());
    match &log {
        None => {
            let (input, output, error) = (io::stdin(), io::stdout(), io::stderr());
            channel.send(&start, &[input.as_fd(), output.as_fd(), error.as_fd()])?;
        }
        Some(log) => {
            let null = File::open("/dev/null")?;
            channel.send(&start, &[null.as_fd(), log.as_fd(), log.as_fd()])?;
        }
    }
    let arrived = await_ready(&channel);
    first_stage.wait()?;
    let (init, warnings) = arrived?;
    // Our child, and not yet waited for: the pid cannot have been given to another.
    let pidfd = rustix::process::pidfd_open(init, PidfdFlags::empty()).map_err(io::Error::from)?;
    Ok(Launched {
        init,
        start_time: start_time_of(init.as_raw_pid())?,
        pidfd,
        channel,
        warnings,
        detached: spec.log.is_some(),
        signals: None,
        stage: Stage::AtTheGate,
    })
}

fn open_log(path: &Path) -> Result<File, LaunchError> {
    let in_directory = || match path.parent() {
        Some(directory) => DirBuilder::new().recursive(true).mode(0o700).create(directory),
        None => Ok(()),
    };
    in_directory()
        .and_then(|()| OpenOptions::new().append(true).create(true).mode(0o600).open(path))
        .map_err(|source| LaunchError::Log { path: path.to_owned(), source })
}

/// Waits for PID 1's number and its readiness, which come from two processes in either order.
fn await_ready(channel: &Channel) -> Result<(Pid, Vec<String>), LaunchError> {
    let (mut born, mut ready) = (None, None);
    loop {
        match channel.receive::<FromSupervisor>()? {
            Some((FromSupervisor::Born { pid }, _)) => born = Pid::from_raw(pid),
            Some((FromSupervisor::Ready { warnings }, _)) => ready = Some(warnings),
            Some((FromSupervisor::Refused(refusal), _)) => return Err(refusal.explained()),
            Some(_) | None => return Err(LaunchError::SupervisorGone),
        }
        if let (Some(pid), Some(warnings)) = (born, &mut ready) {
            return Ok((pid, std::mem::take(warnings)));
        }
    }
}

/// A workload whose namespaces exist. Dropped before [`release`](Launched::release) they vanish again.
#[derive(Debug)]
pub struct Launched {
    init: Pid,
    start_time: u64,
    pidfd: OwnedFd,
    channel: Channel,
    warnings: Vec<String>,
    detached: bool,
    /// Of an attached workload, from before COMMAND runs.
    signals: Option<Signals>,
    stage: Stage,
}

#[derive(Debug, PartialEq)]
enum Stage {
    AtTheGate,
    Released(TerminalUse),
}

impl Launched {
    /// The workload's PID 1 as the caller sees it.
    pub fn pid(&self) -> i32 {
        self.init.as_raw_pid()
    }

    /// When PID 1 started, in clock ticks since boot.
    pub fn start_time(&self) -> u64 {
        self.start_time
    }

    /// What could not be made as it should be, one sentence each, for a person to read.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Lets COMMAND start. A detached command that cannot be executed is an error here, since nobody
    /// waits for it; of any other the exit code of [`wait`](Launched::wait) tells, and the supervisor
    /// has said why on standard error.
    ///
    /// Unless it is detached, catches the signals that [`wait`](Launched::wait) hands on, for the rest of the
    /// program's life: whoever has seen COMMAND run may send one.
    pub fn release(&mut self) -> Result<(), LaunchError> {
        if !self.detached {
            self.signals = Some(Signals::catch(&FORWARDED)?);
        }
        let terminal = if self.detached { TerminalUse::Shared } else { TerminalUse::of_caller() };
        self.channel
            .send(&ToSupervisor::Release { terminal }, &[])
            .map_err(|_| LaunchError::SupervisorGone)?;
        self.stage = Stage::Released(terminal);
        match self.channel.receive()? {
            Some((FromSupervisor::NotStarted { code, reason }, _)) if self.detached => {
                Err(LaunchError::NotStarted { code, reason })
            }
            Some((FromSupervisor::Started | FromSupervisor::NotStarted { .. }, _)) => Ok(()),
            // Killed at this very moment: the exit code tells.
            Some(_) | None => Ok(()),
        }
    }

    /// Waits for COMMAND's end and answers its exit code, 128 + n after signal n. Meanwhile hands TERM,
    /// HUP, INT, QUIT, USR1 and USR2 on to it, but not an INT or QUIT of the terminal, which gives it to
    /// COMMAND itself. To be called once, after [`release`](Launched::release).
    pub fn wait(mut self) -> Result<u8, LaunchError> {
        let signals = match self.signals.take() {
            Some(signals) => signals,
            None => Signals::catch(&FORWARDED)?,
        };
        let own_job = matches!(self.stage, Stage::Released(terminal) if terminal.is_own_job());
        if own_job {
            ignore_ttou();
        }
        loop {
            let mut ready = [
                PollFd::new(&self.pidfd, PollFlags::IN),
                PollFd::new(&signals, PollFlags::IN),
                PollFd::new(&self.channel, PollFlags::IN),
            ];
            // EINTR: the signal is in the pipe.
            let _ = poll(&mut ready, None);
            let [ended, _, spoken] = ready.map(|fd| !fd.revents().is_empty());

            while let Some((signal, sender)) = signals.next() {
                self.forward(signal, sender);
            }
            if ended {
                if own_job {
                    terminal::take_back();
                }
                return self.reap();
            }
            if spoken {
                self.handle_supervisor();
            }
        }
    }

    fn forward(&self, signal: Signal, sender: Sender) {
        let by_terminal =
            sender == Sender::Kernel && (signal == Signal::INT || signal == Signal::QUIT);
        if !by_terminal {
            // Fails when it has just ended, which the pidfd says next.
            let _ = rustix::process::pidfd_send_signal(&self.pidfd, signal);
        }
    }

    /// COMMAND was stopped: so are we, for our shell to see, and when it continues us we continue COMMAND.
    fn handle_supervisor(&self) {
        if !matches!(self.channel.receive(), Ok(Some((FromSupervisor::Stopped, _)))) {
            // The end of the channel comes a moment before the end of the process.
            std::thread::yield_now();
            return;
        }
        let own_job = matches!(self.stage, Stage::Released(terminal) if terminal.is_own_job());
        if own_job {
            terminal::take_back();
        }
        let _ = rustix::process::kill_process(rustix::process::getpid(), Signal::STOP);
        let terminal = if own_job { TerminalUse::of_caller() } else { TerminalUse::Shared };
        let _ = self.channel.send(&ToSupervisor::Continue { terminal }, &[]);
    }

    fn reap(&self) -> Result<u8, LaunchError> {
        match rustix::process::waitpid(Some(self.init), WaitOptions::empty()) {
            Ok(Some((_, status))) => Ok(exit_code(status)),
            Ok(None) => Err(LaunchError::SupervisorGone),
            Err(error) => Err(io::Error::from(error).into()),
        }
    }
}

impl Drop for Launched {
    fn drop(&mut self) {
        if self.stage == Stage::AtTheGate {
            let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
            let _ = self.reap();
        }
    }
}
