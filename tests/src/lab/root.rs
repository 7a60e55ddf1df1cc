//! Who makes the namespaces: root, or the root of a user namespace below a plain user.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, ExitCode};

/// Set in the user namespace.
const BELOW: &str = "LICHEN_LAB_BELOW_USER";

/// Whether this is root itself, with every uid at hand.
pub(super) fn is_real_root() -> bool {
    rustix::process::geteuid().is_root() && std::env::var_os(BELOW).is_none()
}

pub(crate) fn may_make_namespaces() -> bool {
    if is_real_root() {
        // The mode that udev gives it.
        fs::set_permissions("/dev/net/tun", fs::Permissions::from_mode(0o666))
            .expect("a machine with /dev/net/tun");
    }
    rustix::process::geteuid().is_root()
}

/// Runs this program again as the root of a new user namespace.
pub(crate) fn go_on_in_user_namespace() -> ExitCode {
    let status = Command::new("unshare")
        .args(["--user", "--map-root-user", "--"])
        .arg(std::env::current_exe().expect("this program has a path"))
        .args(std::env::args_os().skip(1))
        .env(BELOW, "1")
        .status();
    match status {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}
