//! Where a datapath comes from: the live one is adopted, else one is started.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lichen_api::Directories;
use lichen_workload::only_standard_descriptors;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Longest wait until a datapath that was started listens.
const START_PATIENCE: Duration = Duration::from_secs(5);

/// Why there is no datapath.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// It could not be executed.
    #[error("cannot start the datapath")]
    Spawn(#[source] io::Error),
    /// It ended at once.
    #[error("the datapath ended at once ({status}); see {log}")]
    Ended {
        /// How.
        status: String,
        /// Where it says why.
        log: String,
    },
    /// It does not listen.
    #[error("the datapath did not listen within {} s; see {log}", START_PATIENCE.as_secs())]
    Silent {
        /// Where it may say why.
        log: String,
    },
    /// Its socket said no.
    #[error("cannot connect to the datapath")]
    Connect(#[source] io::Error),
}

/// A connected datapath.
pub struct Connected {
    /// The stream to it.
    pub stream: UnixStream,
    /// Its process, when the kernel told.
    pub pidfd: Option<OwnedFd>,
    /// Whether it is new.
    pub origin: Origin,
}

/// How a datapath was come by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It was there.
    Adopted,
    /// It was started now.
    Started,
}

/// Where datapaths come from.
pub trait DatapathSource: Send {
    /// Connects to the live one, or starts one.
    fn connect(&mut self) -> Result<Connected, DatapathError>;
}

/// A process of its own, in a session of its own, which outlives control.
#[derive(Debug)]
pub struct DatapathProcess {
    directories: Directories,
    /// The one that was started last, to be reaped when it ends.
    child: Option<Child>,
}

impl DatapathProcess {
    /// The datapath of these directories.
    pub fn new(directories: Directories) -> Self {
        Self { directories, child: None }
    }

    fn start(&mut self) -> Result<UnixStream, DatapathError> {
        let socket = self.directories.runtime.datapath_socket();
        let log = self.directories.state.datapath_log();
        let stderr = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&log)
            .map_err(DatapathError::Spawn)?;
        let log = log.display().to_string();
        // By /proc/self/exe, so that a binary that was replaced under us starts its own kind.
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("lichen")
            .arg("datapath")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr);
        let child =
            only_standard_descriptors(&mut command).spawn().map_err(DatapathError::Spawn)?;
        let child = self.child.insert(child);
        let deadline = Instant::now() + START_PATIENCE;
        loop {
            if let Ok(stream) = UnixStream::connect(&socket) {
                return Ok(stream);
            }
            if let Some(status) = child.try_wait().map_err(DatapathError::Spawn)? {
                return Err(DatapathError::Ended { status: status.to_string(), log });
            }
            if Instant::now() >= deadline {
                // One that cannot listen would only stand in the way of the next.
                let _ = child.kill();
                let _ = child.wait();
                return Err(DatapathError::Silent { log });
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl DatapathSource for DatapathProcess {
    fn connect(&mut self) -> Result<Connected, DatapathError> {
        if let Some(child) = &mut self.child {
            // Reaps it; an error would mean that there is nothing to reap.
            let _ = child.try_wait();
        }
        let socket = self.directories.runtime.datapath_socket();
        let (stream, origin) = match UnixStream::connect(&socket) {
            Ok(stream) => (stream, Origin::Adopted),
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                    // Left by one that was killed; only control starts datapaths, and there is one control.
                    let _ = fs::remove_file(&socket);
                    (self.start()?, Origin::Started)
                }
                _ => return Err(DatapathError::Connect(error)),
            },
        };
        let pidfd = rustix::net::sockopt::socket_peercred(&stream)
            .ok()
            .map(|peer| peer.pid)
            .and_then(|pid: Pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        Ok(Connected { stream, pidfd, origin })
    }
}
