//! What the outer mount namespace hides and covers.
//!
//! Hiding comes first, then the files are bound: the file that `/etc/resolv.conf` points to often lies
//! in a directory that is hidden (`/run/systemd/resolve`), and is then made anew inside it.

use std::fs::{self, File, Permissions};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};

use crate::launch_error::{Refusal, Step};
use crate::spec::LaunchSpec;

/// Daemons that would resolve names past our DNS, if their sockets could be reached.
const FOREIGN_RESOLVERS: [&str; 3] = ["/run/systemd/resolve", "/run/nscd", "/var/run/nscd"];

/// Where the covering files are written before they are bound. Nothing we cover lies in there, and the
/// mount is gone again before `/proc` is needed.
const SCRATCH: &str = "/proc";

/// Hides and covers; the answer is what could not be covered, for a person to read.
pub(crate) fn apply(spec: &LaunchSpec) -> Result<Vec<String>, Refusal> {
    let files = CoveredFile::all(spec);
    let hidden = hide(&spec.hide)?;

    mount_tmpfs(Path::new(SCRATCH))?;
    let mut warnings = Vec::new();
    for file in files {
        if !file.cover(&hidden)? {
            warnings.extend(file.warning);
        }
    }
    unmount(SCRATCH, UnmountFlags::DETACH)
        .map_err(|error| Refusal::new(Step::Mount, "unmount the scratch file system", error))?;
    Ok(warnings)
}

/// A file of `/etc` and what the workload reads instead.
struct CoveredFile {
    name: &'static str,
    /// The file behind `/etc/NAME` on the host, which need not exist.
    target: PathBuf,
    content: String,
    /// Said when there is nothing to cover.
    warning: Option<String>,
}

impl CoveredFile {
    fn all(spec: &LaunchSpec) -> Vec<Self> {
        let new = |name: &'static str, content, warning: Option<&str>| Self {
            name,
            target: file_behind(&Path::new("/etc").join(name)),
            content,
            warning: warning.map(str::to_owned),
        };
        let nsswitch = fs::read_to_string("/etc/nsswitch.conf").unwrap_or_default();
        vec![
            new(
                "resolv.conf",
                resolv_conf(spec),
                Some("the host has no /etc/resolv.conf to cover: names will not resolve"),
            ),
            new(
                "hosts",
                hosts(spec),
                Some("the host has no /etc/hosts to cover: localhost may not resolve"),
            ),
            // Without the file the C library already asks files and dns only.
            new("nsswitch.conf", nsswitch_conf(&nsswitch), None),
        ]
    }

    /// False when there is nothing to cover. Only a directory that we hid may get a new file: any other
    /// is the host's.
    fn cover(&self, hidden: &[PathBuf]) -> Result<bool, Refusal> {
        let refused = |what: &str, error: io::Error| {
            Refusal::new(Step::Mount, format!("{what} {}", self.target.display()), error)
        };
        if !self.target.exists() {
            if !hidden.iter().any(|directory| self.target.starts_with(directory)) {
                return Ok(false);
            }
            create(&self.target).map_err(|error| refused("create", error))?;
        }
        let source = Path::new(SCRATCH).join(self.name);
        fs::write(&source, &self.content)
            .and_then(|()| fs::set_permissions(&source, Permissions::from_mode(0o644)))
            .map_err(|error| refused("write what covers", error))?;
        mount_bind(&source, &self.target).map_err(|error| refused("cover", error.into()))?;
        Ok(true)
    }
}

fn create(file: &Path) -> io::Result<()> {
    if let Some(directory) = file.parent() {
        fs::create_dir_all(directory)?;
    }
    File::create(file).map(drop)
}

/// Covers each directory with an empty file system; what does not exist needs no hiding. The answer is
/// the directories with every symbolic link resolved.
fn hide(directories: &[PathBuf]) -> Result<Vec<PathBuf>, Refusal> {
    let mut hidden = Vec::new();
    let foreign = FOREIGN_RESOLVERS.iter().map(PathBuf::from);
    for directory in directories.iter().cloned().chain(foreign) {
        let resolved = match fs::canonicalize(&directory) {
            Ok(resolved) => resolved,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => {
                let what = format!("hide {}", directory.display());
                return Err(Refusal::new(Step::Mount, what, error));
            }
        };
        // Two names of one directory (/var/run is often /run): hidden once.
        if !hidden.contains(&resolved) {
            mount_tmpfs(&resolved)?;
            hidden.push(resolved);
        }
    }
    Ok(hidden)
}

fn mount_tmpfs(target: &Path) -> Result<(), Refusal> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("tmpfs", target, "tmpfs", flags, Some(c"mode=0755,size=1m,nr_inodes=64"))
        .map_err(|error| Refusal::new(Step::Mount, format!("hide {}", target.display()), error))
}

/// Follows symbolic links to the end, also where the last one dangles.
fn file_behind(path: &Path) -> PathBuf {
    let mut path = path.to_owned();
    // As many as the kernel follows (path_resolution(7)).
    for _ in 0..40 {
        let Ok(next) = fs::read_link(&path) else { break };
        path = path.parent().unwrap_or(Path::new("/")).join(next);
    }
    let directory = path.parent().and_then(|parent| fs::canonicalize(parent).ok());
    match (directory, path.file_name()) {
        (Some(directory), Some(name)) => directory.join(name),
        _ => path,
    }
}

fn resolv_conf(spec: &LaunchSpec) -> String {
    format!("nameserver {}\nsearch {}\n", spec.resolver, spec.search)
}

fn hosts(spec: &LaunchSpec) -> String {
    let LaunchSpec { name, search, .. } = spec;
    let mut text = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n".to_owned();
    for address in std::iter::once(spec.address.into()).chain(spec.address6.map(IpAddr::V6)) {
        text.push_str(&format!("{address} {name}.{search} {name}\n"));
    }
    text
}

/// The host's own file with another `hosts` line: users and groups may well come from elsewhere.
fn nsswitch_conf(host: &str) -> String {
    let mut lines: Vec<&str> =
        host.lines().filter(|line| !line.trim_start().starts_with("hosts:")).collect();
    lines.push("hosts: files dns\n");
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_the_hosts_line_of_nsswitch_is_replaced() {
        let host = "passwd: files ldap\nhosts: files resolve [!UNAVAIL=return] dns\ngroup: files";
        assert_eq!(nsswitch_conf(host), "passwd: files ldap\ngroup: files\nhosts: files dns\n");
    }

    #[test]
    fn a_dangling_link_leads_to_the_file_that_is_not_there() {
        let directory = std::env::temp_dir().join(format!("lichen-links-{}", std::process::id()));
        fs::create_dir_all(directory.join("real")).unwrap();
        symlink("real/missing", directory.join("second")).unwrap();
        symlink(directory.join("second"), directory.join("first")).unwrap();

        let found = file_behind(&directory.join("first"));

        assert_eq!(found, fs::canonicalize(&directory).unwrap().join("real/missing"));
        fs::remove_dir_all(directory).unwrap();
    }
}
