//! The product's own processes and logs.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};

use super::machine::Machine;
use super::outcome::eventually;

/// The long-lived processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// `lichen daemon`
    Control,
    /// `lichen datapath`
    Datapath,
}

/// One of them, as the lab sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Process(Pid);

impl Process {
    /// Kills it, and waits until it is gone: a call that came before would still reach it.
    #[track_caller]
    pub(crate) fn kill(self) {
        assert!(self.kill_if_there(), "the lab may kill it");
    }

    /// Asks it to end.
    pub(crate) fn terminate(self) {
        kill_process(self.0, Signal::TERM).expect("the lab may end it");
    }

    /// The same, unless it has just ended; then false.
    #[track_caller]
    pub(super) fn kill_if_there(self) -> bool {
        let killed = kill_process(self.0, Signal::KILL).is_ok();
        eventually("what was killed is gone", || self.is_gone());
        killed
    }

    /// Whether it has let go of everything. One that is ending loses its program before its sockets, and
    /// these only with its last thread.
    fn is_gone(self) -> bool {
        let threads = fs::read_dir(format!("/proc/{}/task", self.0)).map_or(0, Iterator::count);
        let status = fs::read_to_string(format!("/proc/{}/status", self.0)).unwrap_or_default();
        let is_zombie = status.contains("\nState:\tZ") || status.contains("\nState:\tX");
        status.is_empty() || (is_zombie && threads <= 1)
    }

    /// The numbers of its open files, in order, and what each is.
    pub(crate) fn files(self) -> Vec<(u32, String)> {
        let files = self.files_while_it_lives();
        assert!(!files.is_empty(), "it runs");
        files
    }

    /// The same, as far as it still has them.
    pub(crate) fn files_while_it_lives(self) -> Vec<(u32, String)> {
        let folder = fs::read_dir(format!("/proc/{}/fd", self.0)).into_iter().flatten().flatten();
        let mut files: Vec<_> = folder
            .filter_map(|entry| {
                let number = entry.file_name().to_str()?.parse().ok()?;
                Some((number, fs::read_link(entry.path()).ok()?.display().to_string()))
            })
            .collect();
        files.sort();
        files
    }

    /// The process that it has started, if it is one.
    pub(crate) fn only_child(self) -> Option<Self> {
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.0)).ok()?;
        let (child, rest) = children.trim().split_once(' ').unwrap_or((children.trim(), ""));
        rest.is_empty().then(|| child.parse().ok().and_then(Pid::from_raw)).flatten().map(Self)
    }

    /// How many files it may have open.
    pub(crate) fn open_files_limit(self) -> u64 {
        let limits = fs::read_to_string(format!("/proc/{}/limits", self.0)).expect("it runs");
        let line = limits.lines().find(|line| line.starts_with("Max open files"));
        let soft = line.and_then(|line| line.split_whitespace().nth(3));
        soft.and_then(|soft| soft.parse().ok()).expect("a number")
    }

    /// Its number on its machine.
    pub(super) fn pid_on_machine(self) -> String {
        self.status("NSpid").split_whitespace().next_back().expect("a number").to_owned()
    }

    /// The names of its threads.
    pub(crate) fn threads(self) -> Vec<String> {
        let folder = fs::read_dir(format!("/proc/{}/task", self.0)).into_iter().flatten().flatten();
        let names = folder.filter_map(|it| fs::read_to_string(it.path().join("comm")).ok());
        names.map(|name| name.trim().to_owned()).collect()
    }

    /// Processor time that it has used, in ticks of 10 ms.
    pub(crate) fn ticks(self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0)).expect("it runs");
        // The name before may have spaces in it; utime and stime are fields 14 and 15.
        let (_, fields) = stat.rsplit_once(')').expect("its name stands in parentheses");
        let times = fields.split_whitespace().skip(11).take(2);
        times.map(|ticks| ticks.parse::<u64>().expect("a number")).sum()
    }

    /// A line of /proc/PID/status, without its name.
    pub(crate) fn status(self, name: &str) -> String {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0)).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.expect("a line of that name").trim().to_owned()
    }
}

/// The processes in a role in the machine's own network namespace.
pub(super) fn find(machine: &Machine, role: Role) -> Vec<Process> {
    let wanted = match role {
        Role::Control => "daemon",
        Role::Datapath => "datapath",
    };
    let network = machine.network();
    let of_role = |pid: i32| {
        let folder = PathBuf::from(format!("/proc/{pid}"));
        let on_machine = fs::read_link(folder.join("ns/net")).ok()?.to_str() == Some(&network);
        let words = words(&folder)?;
        // `lichen daemon stop` is a call of the command line.
        let is_call = words.get(2).is_some_and(|word| !word.is_empty() && !word.starts_with('-'));
        (on_machine && words.get(1)? == wanted && !is_call).then_some(Process(Pid::from_raw(pid)?))
    };
    pids().filter_map(of_role).collect()
}

/// The processes that a program below `folder` runs with that first argument, wherever they have gone.
pub(super) fn in_role(folder: &Path, role: &str) -> Vec<Process> {
    let of_role = |pid: i32| {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let is_ours = fs::read_link(process.join("exe")).ok()?.starts_with(folder);
        let words = words(&process)?;
        (is_ours && words.get(1)? == role).then_some(Process(Pid::from_raw(pid)?))
    };
    pids().filter_map(of_role).collect()
}

/// The processes that a program below `folder` runs under that name.
pub(super) fn named(folder: &Path, name: &str) -> Vec<Process> {
    let of_name = |pid: i32| {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let is_ours = fs::read_link(process.join("exe")).ok()?.starts_with(folder);
        let found = fs::read_to_string(process.join("comm")).ok()?;
        (is_ours && found.trim() == name).then_some(Process(Pid::from_raw(pid)?))
    };
    pids().filter_map(of_name).collect()
}

/// The command line of a process of the product.
fn words(process: &Path) -> Option<Vec<String>> {
    if !fs::read_link(process.join("exe")).ok()?.ends_with("lichen") {
        return None;
    }
    let command = fs::read(process.join("cmdline")).ok()?;
    let words = command.split(|byte| *byte == 0);
    Some(words.map(|word| String::from_utf8_lossy(word).into_owned()).collect())
}

fn pids() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").expect("a mounted /proc").flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The last lines of each log file.
pub(super) fn logs(state: &Path) -> String {
    let mut text = String::new();
    for name in ["daemon.log", "datapath.log"] {
        let log = fs::read_to_string(state.join(name)).unwrap_or_else(|error| error.to_string());
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(40)..].join("\n");
        text.push_str(&format!("--- {name}\n{tail}\n"));
    }
    text
}
