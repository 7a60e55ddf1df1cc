//! From root to uid 1000.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, ExitCode};

/// Names the network namespace file that root made for the scenarios.
pub(crate) const ROOTS_NETNS: &str = "LICHEN_TEST_ROOTS_NETNS";

/// Runs this program again as uid 1000 with no capability, from a folder that everybody can read.
pub(crate) fn go_on(arguments: &[String]) -> ExitCode {
    // The mode that udev gives it.
    fs::set_permissions("/dev/net/tun", fs::Permissions::from_mode(0o666))
        .expect("a machine with /dev/net/tun");
    let folder = std::env::temp_dir().join(format!("lichen-namespaces-{}", std::process::id()));
    fs::create_dir(&folder).expect("a fresh folder");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).expect("our own folder");
    let program = folder.join("lichen");
    fs::copy("/proc/self/exe", &program).expect("a copy of this program");
    let netns = folder.join("netns-of-root");
    fs::write(&netns, "").expect("our own folder");
    let mounted = Command::new("unshare")
        .arg(format!("--net={}", netns.display()))
        .arg("true")
        .status()
        .expect("unshare of util-linux");
    assert!(mounted.success(), "root may make a network namespace");

    let status = Command::new("setpriv")
        .args(["--reuid=1000", "--regid=1000", "--clear-groups", "--inh-caps=-all"])
        .args(["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/"])
        .arg(format!("{ROOTS_NETNS}={}", netns.display()))
        .arg(&program)
        .args(arguments)
        .status();

    let _ = Command::new("umount").arg(&netns).status();
    let _ = fs::remove_dir_all(&folder);
    match status {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}
