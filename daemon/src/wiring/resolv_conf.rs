//! The host's resolvers, and when they change.
//!
//! `/etc/resolv.conf` is usually replaced by renaming, and often a symbolic link, so the directories of the
//! name and of its target are watched, never the file.

use std::fs;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};

/// Most resolvers that the datapath takes.
const MAX_RESOLVERS: usize = 8;

/// How long changes may still follow one another, as when a VPN starts.
const SETTLE: Duration = Duration::from_millis(100);

/// Looked at without an event as well: a mount over the file tells nobody.
const FALLBACK_SECONDS: i64 = 30;

/// Where the host says which resolvers it uses.
pub fn host_path() -> &'static Path {
    Path::new("/etc/resolv.conf")
}

/// The resolvers that the file names; as resolv.conf(5) says, none means this host.
pub fn read(path: &Path) -> Vec<SocketAddr> {
    // A file that is just being replaced is not there; the event that follows brings the new one.
    parse(&fs::read_to_string(path).unwrap_or_default())
}

fn parse(text: &str) -> Vec<SocketAddr> {
    let mut resolvers: Vec<SocketAddr> = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some("nameserver"), Some(address)) = (words.next(), words.next()) else { continue };
        // A scope (`fe80::1%eth0`) names an interface, which the datapath does not bind to.
        let Ok(ip) = address.parse::<IpAddr>() else { continue };
        let resolver = SocketAddr::new(ip, 53);
        if !resolvers.contains(&resolver) && resolvers.len() < MAX_RESOLVERS {
            resolvers.push(resolver);
        }
    }
    if resolvers.is_empty() {
        resolvers.push(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 53));
    }
    resolvers
}

/// Calls `changed` from a thread of its own with each new set of resolvers, until it answers
/// [`Watching::Stop`].
pub fn watch(
    path: PathBuf,
    mut current: Vec<SocketAddr>,
    mut changed: impl FnMut(Vec<SocketAddr>) -> Watching + Send + 'static,
) -> std::io::Result<()> {
    std::thread::Builder::new().name("resolv-conf".to_owned()).spawn(move || {
        loop {
            let events = watched_directories(&path);
            let found = read(&path);
            if found != current {
                current = found;
                if changed(current.clone()) == Watching::Stop {
                    return;
                }
            }
            wait(events.as_ref().ok());
        }
    })?;
    Ok(())
}

/// Whether to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watching {
    /// Yes.
    Continue,
    /// Nobody listens any more.
    Stop,
}

/// A fresh set of watches each time: the target of a symbolic link may have changed as well.
fn watched_directories(path: &Path) -> rustix::io::Result<OwnedFd> {
    let events = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let flags = WatchFlags::CLOSE_WRITE
        | WatchFlags::CREATE
        | WatchFlags::DELETE
        | WatchFlags::MOVED_TO
        | WatchFlags::MOVED_FROM
        | WatchFlags::ONLYDIR;
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    for file in [path, &target] {
        if let Some(directory) = file.parent() {
            inotify::add_watch(&events, directory, flags)?;
        }
    }
    Ok(events)
}

/// Until something happened in the directories and settled, or for a while when nothing tells.
fn wait(events: Option<&OwnedFd>) {
    let Some(events) = events else {
        return std::thread::sleep(Duration::from_secs(FALLBACK_SECONDS.unsigned_abs()));
    };
    let patience = Timespec { tv_sec: FALLBACK_SECONDS, tv_nsec: 0 };
    let ready = poll(&mut [PollFd::new(events, PollFlags::IN)], Some(&patience));
    if ready.is_ok_and(|count| count > 0) {
        std::thread::sleep(SETTLE);
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(events, &mut buffer);
        while reader.next().is_ok() {}
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn nameservers_are_read_in_order_and_the_stub_is_kept() {
        let text = "# comment\nnameserver 127.0.0.53\nnameserver 192.0.2.1 \n\
            nameserver fe80::1%eth0\nnameserver 2001:db8::1\noptions edns0\nnameserver 192.0.2.1\n\
            nameserver\nnameserver none\n";
        let found: Vec<String> = parse(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["127.0.0.53:53", "192.0.2.1:53", "[2001:db8::1]:53"]);
    }

    #[test]
    fn a_file_that_names_none_means_this_host() {
        assert_eq!(parse("search example\n"), ["127.0.0.1:53".parse().unwrap()]);
        assert_eq!(read(Path::new("/nonexistent")), ["127.0.0.1:53".parse().unwrap()]);
    }

    #[test]
    fn a_file_replaced_by_renaming_is_seen() {
        let scratch = Scratch::new("resolv");
        let path = scratch.path().join("resolv.conf");
        fs::write(&path, "nameserver 192.0.2.1\n").unwrap();
        let (sender, receiver) = mpsc::channel();
        watch(path.clone(), read(&path), move |found| {
            sender.send(found).map_or(Watching::Stop, |()| Watching::Continue)
        })
        .unwrap();
        // The first watch may not be there yet; so the renaming is repeated until it is seen.
        for octet in 2..50 {
            let fresh = scratch.path().join("fresh");
            fs::write(&fresh, format!("nameserver 192.0.2.{octet}\n")).unwrap();
            fs::rename(&fresh, &path).unwrap();
            if let Ok(found) = receiver.recv_timeout(Duration::from_millis(300)) {
                assert_eq!(found[0].port(), 53);
                assert_ne!(found[0].ip().to_string(), "192.0.2.1");
                return;
            }
        }
        panic!("no change was seen");
    }
}
