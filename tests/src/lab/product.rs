//! The product's own processes and logs.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};

use super::machine::Machine;

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
    pub(crate) fn kill(self) {
        kill_process(self.0, Signal::KILL).expect("the lab may kill it");
    }

    /// Kills it, unless it has just ended.
    pub(super) fn kill_if_there(self) -> bool {
        kill_process(self.0, Signal::KILL).is_ok()
    }

    /// Whether it has let go of everything. One that is ending has lost its program before its sockets.
    pub(super) fn is_gone(self) -> bool {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0)).unwrap_or_default();
        status.is_empty() || status.contains("\nState:\tZ") || status.contains("\nState:\tX")
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
        let is_product = fs::read_link(folder.join("exe")).ok()?.ends_with("lichen");
        let on_machine = fs::read_link(folder.join("ns/net")).ok()?.to_str() == Some(&network);
        let command = fs::read(folder.join("cmdline")).ok()?;
        let mut words = command.split(|byte| *byte == 0).skip(1);
        let is_role = words.next()? == wanted.as_bytes();
        // `lichen daemon stop` is a call of the command line.
        let is_call = words.next().is_some_and(|word| !word.is_empty() && !word.starts_with(b"-"));
        (is_product && on_machine && is_role && !is_call).then_some(Process(Pid::from_raw(pid)?))
    };
    fs::read_dir("/proc")
        .expect("a mounted /proc")
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(of_role)
        .collect()
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
