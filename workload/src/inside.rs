//! What PID 1 makes of the inner namespaces before COMMAND starts.

use std::fs;
use std::os::fd::OwnedFd;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_bind_recursive};

use crate::launch_error::{Refusal, Step};
use crate::namespaces::Identity;
use crate::netlink;

/// Where the host's control groups are seen; programs read their memory and CPU limits there.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Makes the namespaces usable; the answer is what is not as it should be, for a person to read.
pub(crate) fn prepare(name: &str, identity: Identity) -> Result<Vec<String>, Refusal> {
    let mut warnings = Vec::new();
    // Inside a container whose /proc or /sys is partly covered the kernel refuses fresh ones, since they
    // would show what is covered. A workload works with the host's too, it only sees odd pids.
    if let Err(error) = mount_proc() {
        warnings.push(format!("no /proc of its own, the host's shows through: {error}"));
    }
    if let Err(error) = mount_sys() {
        warnings.push(format!("no /sys of its own, the host's shows through: {error}"));
    }
    rustix::system::sethostname(name.as_bytes())
        .map_err(|error| Refusal::new(Step::Inside, "set the host name", error))?;
    netlink::Socket::open()
        .and_then(|socket| socket.set_up(netlink::LOOPBACK))
        .map_err(|error| Refusal::new(Step::Inside, "set lo up", error))?;

    let gid = identity.gid();
    for (setting, value) in [
        ("ip_unprivileged_port_start", "0".to_owned()),
        ("ping_group_range", format!("{gid} {gid}")),
    ] {
        if let Err(error) = fs::write(format!("/proc/sys/net/ipv4/{setting}"), value) {
            warnings.push(format!("net.ipv4.{setting} stays as it is: {error}"));
        }
    }
    Ok(warnings)
}

fn mount_proc() -> Result<(), Errno> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("proc", "/proc", "proc", flags, None)
}

fn mount_sys() -> Result<(), Errno> {
    let cgroups: Option<OwnedFd> =
        openat(CWD, CGROUPS, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .ok();
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("sysfs", "/sys", "sysfs", flags, None)?;
    if let Some(cgroups) = cgroups {
        use std::os::fd::AsRawFd as _;
        mount_bind_recursive(format!("/proc/self/fd/{}", cgroups.as_raw_fd()), CGROUPS)?;
    }
    Ok(())
}
