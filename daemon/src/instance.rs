//! There is one control per runtime directory.
//!
//! A lock decides, never a pid file or a socket: the kernel lets go of it when its holder dies. Its descriptor
//! is close-on-exec, else the datapath, which outlives control, would hold it for ever.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use lichen_api::RuntimeDirectory;
use rustix::fs::{FlockOperation, Mode, flock};

/// How long a predecessor that was told to go may take.
const PATIENCE: Duration = Duration::from_millis(500);

/// Why we are not the one.
#[derive(Debug, thiserror::Error)]
pub enum InstanceError {
    /// Another is.
    #[error("a daemon is running already, on {0}; end it with: lichen daemon stop")]
    Running(PathBuf),
    /// The file system said no.
    #[error("cannot use {path}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// Being the one, until dropped.
#[derive(Debug)]
pub struct Instance {
    _lock: File,
    socket: PathBuf,
}

impl Instance {
    /// Takes the lock, waiting a little for a predecessor that is about to end.
    pub fn claim(directory: &RuntimeDirectory) -> Result<Self, InstanceError> {
        let path = directory.control_lock();
        let failed = |source| InstanceError::Io { path: path.clone(), source };
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    return Err(InstanceError::Running(directory.control_socket()));
                }
                Err(error) => return Err(failed(error.into())),
            }
        }
        Ok(Self { _lock: lock, socket: directory.control_socket() })
    }

    /// Listens on the API's socket; one that a dead predecessor left is replaced.
    pub fn listen(&self) -> Result<UnixListener, InstanceError> {
        let failed = |source| InstanceError::Io { path: self.socket.clone(), source };
        match fs::remove_file(&self.socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        // From its first moment nobody else may connect.
        let before = rustix::process::umask(Mode::from_raw_mode(0o177));
        let listener = UnixListener::bind(&self.socket);
        rustix::process::umask(before);
        let listener = listener.map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(listener)
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // While the lock is still held, so that it is never a successor's.
        let _ = fs::remove_file(&self.socket);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::scratch::{Scratch, directories};

    #[test]
    fn there_is_one_and_its_successor_replaces_a_stale_socket() {
        let scratch = Scratch::new("instance");
        let directory = directories(&scratch).runtime;
        let first = Instance::claim(&directory).unwrap();
        let _listener = first.listen().unwrap();
        let mode = fs::metadata(directory.control_socket()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let begun = Instant::now();
        assert!(matches!(Instance::claim(&directory), Err(InstanceError::Running(_))));
        assert!(begun.elapsed() < Duration::from_secs(1));
        drop(first);
        fs::write(directory.control_socket(), b"stale").unwrap();
        Instance::claim(&directory).unwrap().listen().unwrap();
    }
}
