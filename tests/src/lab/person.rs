//! The unprivileged person who uses the product on the host.
//!
//! Below a plain user, where no second uid exists, the person is uid 1000 of one more user namespace,
//! and without a capability in it, as everywhere.

use std::process::Command;

use super::folder::{Folder, PERSON};
use super::machine::{Background, Machine};
use super::outcome::eventually;
use super::root::is_real_root;

pub(super) struct Person {
    identity: Identity,
    machine: Vec<String>,
    environment: Vec<String>,
}

enum Identity {
    /// Switched to by root.
    OfRoot,
    /// Held by a process in a user namespace.
    OfNamespace { holder: Background },
}

impl Person {
    pub(super) fn on(host: &Machine, folder: &Folder) -> Self {
        let identity = if is_real_root() {
            Identity::OfRoot
        } else {
            let program = folder.path("bin/lichen-lab").display().to_string();
            let (user, group) = (format!("--map-user={PERSON}"), format!("--map-group={PERSON}"));
            let holder =
                host.start_in_background(&["unshare", "--user", &user, &group, &program, "init"]);
            eventually("the person's user namespace", || !holder.printed().is_empty());
            Identity::OfNamespace { holder }
        };
        let at = |name: &str| folder.path(name).display().to_string();
        let enter = host.enter();
        let words = std::iter::once(enter.get_program()).chain(enter.get_args());
        // Said of a whole run of the scenarios: how many workers carry the frames, and how long they look for more.
        let workers = ["LICHEN_WORKERS", "LICHEN_BUSY_POLL_US"]
            .into_iter()
            .filter_map(|name| Some(format!("{name}={}", std::env::var(name).ok()?)));
        Self {
            identity,
            machine: words.map(|word| word.to_string_lossy().into_owned()).collect(),
            environment: [
                "PATH=/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
                format!("HOME={}", at("home")),
                format!("XDG_RUNTIME_DIR={}", at("run")),
                format!("XDG_STATE_HOME={}", at("home/state")),
            ]
            .into_iter()
            .chain(workers)
            .collect(),
        }
    }

    /// A command in the person's environment and home.
    pub(super) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.machine[0]);
        command.args(&self.machine[1..]);
        let id = |option: &str| format!("{option}={PERSON}");
        match &self.identity {
            Identity::OfRoot => {
                command.args(["--", "setpriv", &id("--reuid"), &id("--regid"), "--clear-groups"]);
            }
            Identity::OfNamespace { holder } => {
                let holder = holder.inside().expect("the holder lives as long as the lab");
                command.arg(format!("--user=/proc/{holder}/ns/user"));
                command.args(["--preserve-credentials", "--", "setpriv"]);
            }
        }
        command
            .args(["--inh-caps=-all", "env", "-i"])
            .args(&self.environment)
            .args(["sh", "-c", "cd; exec \"$@\"", "sh"])
            .args(words);
        command
    }

    /// The person's group as the lab's root writes it.
    pub(super) fn group_in_lab(&self) -> u32 {
        match self.identity {
            Identity::OfRoot => PERSON,
            Identity::OfNamespace { .. } => 0,
        }
    }
}
