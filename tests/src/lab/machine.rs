//! One machine: network, mount, PID, IPC and UTS namespaces with a PID 1 of ours.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::folder::Folder;
use super::init::READY;
use super::outcome::{comes_true, run};

/// A machine of the lab. Dropping it ends every process on it.
pub(crate) struct Machine {
    holder: Child,
    /// PID 1 of the machine as the lab sees it.
    init: u32,
    logs: PathBuf,
}

impl Machine {
    pub(super) fn start(folder: &Folder, name: &str) -> Self {
        let complaints = folder.path("logs").join(name);
        let mut holder = Command::new("setpriv")
            // The machine goes with the runner, however that ends.
            .args(["--pdeathsig", "KILL", "unshare", "--net", "--mount", "--pid", "--ipc", "--uts"])
            .args(["--fork", "--kill-child", "--mount-proc", "--"])
            .arg(folder.path("bin/lichen-lab"))
            .arg("init")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&complaints).expect("a fresh file"))
            .spawn()
            .expect("setpriv and unshare of util-linux");
        let mut line = String::new();
        let output = holder.stdout.take().expect("it was asked for");
        BufReader::new(output).read_line(&mut line).expect("a readable pipe");
        let why = fs::read_to_string(complaints).unwrap_or_default();
        assert_eq!(line.trim(), READY, "the machine {name} does not start: {why}");
        let init = only_child(holder.id()).expect("the machine's PID 1");
        let machine = Self { holder, init, logs: folder.path("logs") };
        run(&mut machine.command(&["hostname", name])).success();
        machine
    }

    /// A command of the lab's root on this machine.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = self.enter();
        command.arg("--").args(words);
        command
    }

    /// `nsenter` into this machine, for further options.
    pub(super) fn enter(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--net", "--mount", "--pid", "--ipc", "--uts", "--target"]);
        command.arg(self.init.to_string());
        command
    }

    /// What a shell script of the lab's root prints; it must succeed.
    #[track_caller]
    pub(crate) fn sh(&self, script: &str) -> String {
        run(&mut self.command(&["sh", "-c", script])).success()
    }

    /// Leaves a command running; its output goes to a file of the lab.
    #[track_caller]
    pub(crate) fn start_in_background(&self, words: &[&str]) -> Background {
        Background::start(&mut self.command(words), &self.logs)
    }

    /// Its PID 1 as the lab sees it.
    pub(super) fn init(&self) -> u32 {
        self.init
    }

    /// Identity of the machine's network namespace.
    pub(super) fn network(&self) -> String {
        fs::read_link(format!("/proc/{}/ns/net", self.init))
            .expect("the machine runs")
            .display()
            .to_string()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // `unshare` waits for PID 1, whose end is the end of everything on the machine.
        kill(self.init);
        let _ = self.holder.wait();
    }
}

/// A command that goes on while the scenario does other things; ended when dropped.
pub(crate) struct Background {
    child: Child,
    log: PathBuf,
}

impl Background {
    /// Starts a command that enters a machine.
    #[track_caller]
    pub(crate) fn start(command: &mut Command, logs: &std::path::Path) -> Self {
        let number = fs::read_dir(logs).map_or(0, Iterator::count);
        let log = logs.join(format!("{number}.log"));
        let file = File::create(&log).expect("a fresh file");
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a second descriptor"))
            .stderr(file)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self { child, log }
    }

    /// What it has printed.
    pub(crate) fn printed(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The process inside of the machine, as the lab sees it.
    pub(super) fn inside(&self) -> Option<u32> {
        only_child(self.child.id())
    }

    /// Presses Ctrl-C.
    pub(crate) fn interrupt(&self) {
        let inside = self.inside().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        kill_process(inside.expect("it runs"), Signal::INT).expect("the lab may end it");
    }

    /// Its exit code, once it has ended.
    pub(crate) fn ended(&mut self) -> Option<i32> {
        self.child.try_wait().ok().flatten().map(|status| status.code().unwrap_or(-1))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // nsenter waits outside of the machine for its child inside, which hears no signal of it.
        if let Some(inside) = self.inside() {
            kill(inside);
            // It reaps that child and ends. Killed before, it would leave it to whoever is process 1 out
            // there, which need not reap; and a machine ends only when all of its processes are reaped.
            comes_true(|| self.ended().is_some());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn only_child(pid: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

/// Fails when it has just ended.
fn kill(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, Signal::KILL);
    }
}
