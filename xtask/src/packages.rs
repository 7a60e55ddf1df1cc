//! Programs that a command of the repository needs, and the Debian packages that bring them.

use std::path::Path;
use std::process::Command;

use crate::step::{Failed, run};

/// A program and its package.
type Needed = (&'static str, &'static str);

/// For `check`.
pub(crate) const LINTS: &[Needed] =
    &[("cargo-clippy", "rust-web-clippy"), ("rustfmt", "rustfmt-web")];

/// For `demo`.
pub(crate) const DEMO: &[Needed] = &[
    ("busybox", "busybox-static"),
    ("curl", "curl"),
    ("iperf3", "iperf3"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("setpriv", "util-linux"),
];

/// For the tests of the crate `workload` and the end-to-end suite.
pub(crate) const TESTS: &[Needed] = &[
    ("busybox", "busybox-static"),
    ("crun", "crun"),
    ("curl", "curl"),
    ("dhclient", "isc-dhcp-client"),
    ("dig", "bind9-dnsutils"),
    ("dnsmasq", "dnsmasq-base"),
    ("ip", "iproute2"),
    ("iperf3", "iperf3"),
    ("nc.openbsd", "netcat-openbsd"),
    ("newuidmap", "uidmap"),
    ("ping", "iputils-ping"),
    ("podman", "podman"),
    ("ps", "procps"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("setpriv", "util-linux"),
    ("valgrind", "valgrind"),
];

/// For `bench instructions`.
pub(crate) const INSTRUCTIONS: &[Needed] = &[("valgrind", "valgrind")];

/// For `bench`.
pub(crate) const BENCH: &[Needed] =
    &[("ip", "iproute2"), ("iperf3", "iperf3"), ("pasta", "passt"), ("slirp4netns", "slirp4netns")];

/// Installs what is missing, as root; else says what to install.
pub(crate) fn ensure(needed: &[Needed]) -> Result<(), Failed> {
    let mut missing: Vec<&str> = needed
        .iter()
        .filter(|(program, _)| !is_installed(program))
        .map(|(_, package)| *package)
        .collect();
    missing.sort_unstable();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    if !is_root() {
        return Err(Failed::new(format!(
            "these Debian packages are needed; as root: apt-get install {}",
            missing.join(" ")
        )));
    }
    run(Command::new("apt-get").args(["update", "-q"]))?;
    run(Command::new("apt-get")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(["install", "-q", "-y", "--no-install-recommends"])
        .args(&missing))
}

/// Whether this process may do everything.
pub(crate) fn is_root() -> bool {
    // The owner of /proc/self is the effective user.
    std::fs::metadata("/proc/self")
        .is_ok_and(|metadata| std::os::unix::fs::MetadataExt::uid(&metadata) == 0)
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        // A user's PATH often lacks the folders of system programs.
        .chain(["/usr/sbin", "/sbin"].map(|folder| Path::new(folder).to_owned()))
        .any(|folder| folder.join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_by_path_and_a_missing_one_is_not() {
        assert!(is_installed("sh"));
        assert!(!is_installed("no-such-program-of-ours"));
    }
}
