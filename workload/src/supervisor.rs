//! The supervisor: the role that makes a workload's namespaces and becomes PID 1 in them.
//!
//! PID 1 starts COMMAND when the launcher opens the gate, hands signals on to it, reaps whatever is
//! orphaned, and ends with COMMAND; the kernel then kills what is left in the PID namespace. It lives
//! on when a detached launcher goes, and nothing of Lichen has to run for it.

use std::env;
use std::io;
use std::os::fd::OwnedFd;
use std::process::ExitCode;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};

use crate::channel::Channel;
use crate::conversation::{FromSupervisor, ToSupervisor};
use crate::launch_error::{Refusal, Step};
use crate::namespaces::{Forked, Identity, enter_inner, enter_outer, fork_sibling};
use crate::signals::{FORWARDED, Sender, Signals, ignore_ttou};
use crate::spec::LaunchSpec;
use crate::terminal::TerminalUse;
use crate::{command, covers, inside, role};

/// What the launcher finds when Lichen itself fails.
const OURS_FAILED: u8 = 125;

/// The role `supervise`. Standard input is the launcher's channel.
pub fn supervise_main() -> ExitCode {
    let channel = match role::channel_of_this_role() {
        Ok(channel) => channel,
        Err(_) => {
            eprintln!("lichen supervise is started by lichen run, not by hand");
            return ExitCode::from(OURS_FAILED);
        }
    };
    let Ok(Some((ToSupervisor::Start(spec), descriptors))) = channel.receive() else {
        return ExitCode::from(OURS_FAILED);
    };
    match enter(&spec, &descriptors) {
        Ok(Entered::FirstStage(init)) => {
            let born = FromSupervisor::Born { pid: init.as_raw_pid() };
            // Without a launcher PID 1 finds the gate closed for good and ends by itself.
            let _ = channel.send(&born, &[]);
            ExitCode::SUCCESS
        }
        Ok(Entered::Init { identity, warnings }) => {
            drop(descriptors);
            ExitCode::from(init(&spec, identity, warnings, channel))
        }
        Err(refusal) => {
            let _ = channel.send(&FromSupervisor::Refused(refusal), &[]);
            ExitCode::from(OURS_FAILED)
        }
    }
}

enum Entered {
    FirstStage(Pid),
    Init { identity: Identity, warnings: Vec<String> },
}

fn enter(spec: &LaunchSpec, descriptors: &[OwnedFd]) -> Result<Entered, Refusal> {
    let inside = |what: &'static str| move |error| Refusal::new(Step::Inside, what, error);
    if let [input, output, error] = descriptors {
        rustix::stdio::dup2_stdin(input)
            .and_then(|()| rustix::stdio::dup2_stdout(output))
            .and_then(|()| rustix::stdio::dup2_stderr(error))
            .map_err(inside("take over standard input and output"))?;
    }
    let directory = env::current_dir();
    let identity = Identity::wanted(spec.user);

    enter_outer(identity)?;
    let warnings = covers::apply(spec)?;
    // By name again: the directory that we stand in may be one that is hidden now, and a command that
    // starts in it would still see what is below.
    directory
        .and_then(env::set_current_dir)
        .or_else(|_| env::set_current_dir("/"))
        .map_err(inside_io("enter the working directory"))?;
    enter_inner(identity)?;
    match fork_sibling().map_err(inside_io("fork PID 1"))? {
        Forked::Caller(pid) => Ok(Entered::FirstStage(pid)),
        Forked::Sibling => Ok(Entered::Init { identity, warnings }),
    }
}

fn inside_io(what: &'static str) -> impl Fn(io::Error) -> Refusal {
    move |error| Refusal::new(Step::Inside, what, error)
}

/// PID 1 until its end; the answer is the exit code.
fn init(spec: &LaunchSpec, identity: Identity, mut warnings: Vec<String>, channel: Channel) -> u8 {
    let _ = rustix::thread::set_name(c"lichen-init");
    if spec.log.is_some() {
        // Cannot fail: a process that was just forked leads no process group.
        let _ = rustix::process::setsid();
    }
    let prepared = inside::prepare(&spec.name, identity).and_then(|more| {
        warnings.extend(more);
        let caught = [&FORWARDED[..], &[Signal::CHILD]].concat();
        Signals::catch(&caught).map_err(inside_io("catch signals"))
    });
    let signals = match prepared {
        Ok(signals) => signals,
        Err(refusal) => {
            let _ = channel.send(&FromSupervisor::Refused(refusal), &[]);
            return OURS_FAILED;
        }
    };
    if channel.send(&FromSupervisor::Ready { warnings }, &[]).is_err() {
        return OURS_FAILED;
    }
    let Ok(Some((ToSupervisor::Release { terminal }, _))) = channel.receive() else {
        return OURS_FAILED;
    };
    ignore_ttou();
    let command = match command::start(&spec.command, terminal) {
        Ok(pid) => pid,
        Err(error) => {
            let (code, reason) = (error.code(), error.to_string());
            if spec.log.is_none() {
                eprintln!("lichen: {reason}");
            }
            let _ = channel.send(&FromSupervisor::NotStarted { code, reason }, &[]);
            return code;
        }
    };
    let _ = channel.send(&FromSupervisor::Started, &[]);
    // Out of the caller's process group, so that a signal for that group comes by the launcher alone,
    // who knows whether COMMAND got it as well. Fails for the leader of a session, who is out already.
    let _ = rustix::process::setpgid(None, None);
    let detached = spec.log.is_some();
    Watch { command, terminal, signals, launcher: Some(channel).filter(|_| !detached) }.run()
}

/// COMMAND runs.
struct Watch {
    command: Pid,
    terminal: TerminalUse,
    signals: Signals,
    /// `None` when detached, or gone.
    launcher: Option<Channel>,
}

impl Watch {
    fn run(mut self) -> u8 {
        loop {
            let mut ready = vec![PollFd::new(&self.signals, PollFlags::IN)];
            if let Some(launcher) = &self.launcher {
                ready.push(PollFd::new(launcher, PollFlags::IN));
            }
            // EINTR: the signal is in the pipe.
            let _ = poll(&mut ready, None);
            let launcher_speaks = ready.get(1).is_some_and(|fd| !fd.revents().is_empty());

            while let Some((signal, sender)) = self.signals.next() {
                self.handle_signal(signal, sender);
            }
            if let Some(code) = self.reap() {
                return code;
            }
            if launcher_speaks {
                self.handle_launcher();
            }
        }
    }

    fn handle_signal(&self, signal: Signal, sender: Sender) {
        if signal != Signal::CHILD && sender == Sender::Process {
            let _ = rustix::process::kill_process(self.command, signal);
        }
    }

    /// Reaps what has ended; the exit code once COMMAND is among it.
    fn reap(&self) -> Option<u8> {
        let options = WaitOptions::NOHANG | WaitOptions::UNTRACED;
        while let Ok(Some((pid, status))) = rustix::process::wait(options) {
            if pid != self.command {
                continue;
            }
            if status.stopped() {
                if let Some(launcher) = &self.launcher {
                    let _ = launcher.send(&FromSupervisor::Stopped, &[]);
                }
            } else {
                return Some(exit_code(status));
            }
        }
        None
    }

    fn handle_launcher(&mut self) {
        let Some(launcher) = &self.launcher else { return };
        match launcher.receive() {
            Ok(Some((ToSupervisor::Continue { terminal }, _))) => {
                if terminal == TerminalUse::Foreground {
                    let _ = rustix::termios::tcsetpgrp(rustix::stdio::stdin(), self.command);
                }
                self.signal_job(Signal::CONT);
            }
            _ => {
                self.launcher = None;
                self.signal_job(Signal::HUP);
                self.signal_job(Signal::CONT);
            }
        }
    }

    fn signal_job(&self, signal: Signal) {
        let _ = if self.terminal.is_own_job() {
            rustix::process::kill_process_group(self.command, signal)
        } else {
            rustix::process::kill_process(self.command, signal)
        };
    }
}

/// 128 + n for a command that signal n ended, as a shell says it.
pub(crate) fn exit_code(status: WaitStatus) -> u8 {
    let code = match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => return OURS_FAILED,
    };
    // Both are below 256 (wait(2)).
    u8::try_from(code).unwrap_or(OURS_FAILED)
}
