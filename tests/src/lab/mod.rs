//! A host and its upstream, each a set of namespaces, joined by a veth; neither has a way out.
//!
//! ```text
//!   machine H                                    machine U
//!   canary on 127.0.0.1:8099      veth           web server on :80, names on :53, iperf3 on :5201
//!   lichen as uid 1000   192.0.2.2 ───── 192.0.2.1   198.51.100.1 (one hop behind it)
//!                      2001:db8::2 ───── 2001:db8::1   2001:db8:f::1
//! ```
//! The test makes it, and dropping it ends every process in it and removes its folder: each machine has
//! a PID namespace, whose first process is killed.

mod dice;
mod folder;
mod init;
mod machine;
mod outcome;
mod person;
mod product;
mod root;
mod services;
mod shaped_link;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

pub(crate) use dice::Dice;
pub(crate) use init::init;
pub(crate) use machine::{Background, Machine};
pub(crate) use outcome::{Outcome, comes_true, eventually, run, run_within, try_within, within};
pub(crate) use product::{Process, Role};
pub(crate) use root::{go_on_in_user_namespace, may_make_namespaces};
pub(crate) use shaped_link::{Direction, ShapedLink};

use folder::Folder;
use lichen_guest::Image;
use person::Person;

use crate::vm::keep_image;

/// Addresses of the lab (RFC 5737, RFC 3849), fit for a command line.
pub(crate) mod address {
    /// The host H on its one link.
    pub(crate) const HOST: &str = "192.0.2.2";
    /// The upstream U: router, web server, resolver.
    pub(crate) const UPSTREAM: &str = "192.0.2.1";
    /// A server behind U's link address.
    pub(crate) const FAR: &str = "198.51.100.1";
    /// The same in IPv6 (RFC 3849).
    pub(crate) const HOST6: &str = "2001:db8::2";
    /// The upstream U in IPv6.
    pub(crate) const UPSTREAM6: &str = "2001:db8::1";
    /// The server behind U's link address in IPv6.
    pub(crate) const FAR6: &str = "2001:db8:f::1";
    /// The gateway of the product's default network.
    pub(crate) const GATEWAY: &str = "10.88.0.1";
}

/// A fresh host with its upstream.
pub(crate) struct Lab {
    host: Machine,
    upstream: Machine,
    person: Person,
    // Ended before the machines go, so that none of them writes into the folder while it is removed.
    _services: Vec<Background>,
    guest: OnceLock<Image>,
    folder: Folder,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let folder = Folder::new();
        let host = Machine::start(&folder, "host");
        let upstream = Machine::start(&folder, "upstream");
        services::join(&host, &upstream);
        services::own_etc(&host, &folder);
        let person = Person::on(&host, &folder);
        services::let_ping(&host, person.group_in_lab());
        let services = services::start(&host, &upstream, &folder);
        Self { host, upstream, person, _services: services, guest: OnceLock::new(), folder }
    }

    /// The machine that the product runs on; its commands run as the lab's root.
    pub(crate) fn host(&self) -> &Machine {
        &self.host
    }

    /// The outside.
    pub(crate) fn upstream(&self) -> &Machine {
        &self.upstream
    }

    /// Makes the link between the machines a bad one, `forth` from the host and `back` to it. Once the answer is
    /// dropped there is no link.
    #[track_caller]
    pub(crate) fn shape(&self, forth: Direction, back: Direction) -> ShapedLink {
        ShapedLink::start(self, forth, back)
    }

    /// A command of the unprivileged person on the host.
    pub(crate) fn person(&self, words: &[&str]) -> Command {
        self.person.command(words)
    }

    /// A call of the product by that person.
    pub(crate) fn lichen<const N: usize>(&self, words: [&str; N]) -> Command {
        self.lichen_with(&words)
    }

    pub(crate) fn lichen_with(&self, words: &[&str]) -> Command {
        let program = self.folder.path("bin/lichen").display().to_string();
        self.person.command(&[&[program.as_str()], words].concat())
    }

    /// What a shell script prints in a new workload; it must succeed.
    #[track_caller]
    pub(crate) fn in_workload(&self, script: &str) -> String {
        run(&mut self.lichen(["run", "--", "sh", "-c", script])).success()
    }

    /// Starts a workload in the background with a web server on port 80.
    #[track_caller]
    pub(crate) fn web_server(&self, name: &str, options: &[&str]) {
        let site = self.folder.path("site").display().to_string();
        let server = ["busybox", "httpd", "-f", "-p", "80", "-h", &site];
        let words = [&["run", "-d", "--name", name], options, &["--"], &server].concat();
        run(&mut self.lichen_with(&words)).success();
        eventually("the web server listens", || {
            run(&mut self.lichen(["run", "--", "nc", "-z", name, "80"])).code == Some(0)
        });
    }

    /// A file or directory of this lab, which the person may write.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path(name)
    }

    /// What virtual machines boot, where the person can read it.
    pub(crate) fn guest_image(&self) -> &Image {
        self.guest.get_or_init(|| {
            let built = keep_image().unwrap_or_else(|error| panic!("no image of a guest: {error}"));
            let image = Image { kernel: self.path("vmlinuz"), files: self.path("initrd") };
            for (from, to) in [(built.kernel, &image.kernel), (built.files, &image.files)] {
                fs::copy(&from, to).expect("our folder");
                fs::set_permissions(to, fs::Permissions::from_mode(0o644)).expect("our file");
            }
            image
        })
    }

    /// The product's process in a role, if it runs; there is never a second one.
    #[track_caller]
    pub(crate) fn process(&self, role: Role) -> Option<Process> {
        let found = product::find(&self.host, role);
        assert!(found.len() <= 1, "{role:?}: {found:?}");
        found.first().copied()
    }

    /// The product's processes with that first argument, in whatever namespace they are.
    pub(crate) fn in_role(&self, role: &str) -> Vec<Process> {
        product::in_role(&self.folder.path("bin"), role)
    }

    /// The product's processes of that name, in whatever namespace they are.
    pub(crate) fn named(&self, name: &str) -> Vec<Process> {
        product::named(&self.folder.path("bin"), name)
    }

    /// Kills one of the product's processes in a role. False when there was none to kill.
    #[track_caller]
    pub(crate) fn kill_if_there(&self, role: Role) -> bool {
        product::find(&self.host, role).first().is_some_and(|process| process.kill_if_there())
    }

    /// Changes how many files a process may have open, up to its hard limit.
    #[track_caller]
    pub(crate) fn limit_open_files(&self, process: Process, count: u64) {
        let (pid, limit) = (process.pid_on_machine(), format!("--nofile={count}:"));
        run(&mut self.person(&["prlimit", "--pid", &pid, &limit])).success();
    }

    /// The product's logs, for a person who looks for the cause of a failure.
    pub(crate) fn logs(&self) -> String {
        product::logs(&self.folder.path("home/state/lichen"))
    }
}
