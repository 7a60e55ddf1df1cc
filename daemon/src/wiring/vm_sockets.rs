//! The sockets that virtual machines connect to, which control binds and the datapath accepts on.
//!
//! Control keeps a copy of each, so that a new datapath can be given it again and the path never changes
//! under a monitor that connects again; a control that adopts a datapath takes a copy back from it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::sync::{Mutex, MutexGuard};

use lichen_api::{DirectoryError, RuntimeDirectory, VmAttachment};
use lichen_netstack::ids::PortId;

use crate::state::WorkloadRow;

/// Why a socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Its path cannot be used.
    #[error(transparent)]
    Path(#[from] DirectoryError),
    /// The file system or the kernel said no.
    #[error("cannot listen on {path}: {source}")]
    Io {
        /// Where.
        path: String,
        /// What it said.
        source: io::Error,
    },
}

/// All sockets that control holds.
#[derive(Debug)]
pub struct VmSockets {
    runtime: RuntimeDirectory,
    held: Mutex<BTreeMap<PortId, OwnedFd>>,
}

impl VmSockets {
    /// Holds none yet.
    pub fn new(runtime: RuntimeDirectory) -> Self {
        Self { runtime, held: Mutex::default() }
    }

    /// Whether a socket is held for a port.
    pub fn has(&self, id: PortId) -> bool {
        self.lock().contains_key(&id)
    }

    /// Keeps a socket that an adopted datapath had.
    pub fn adopt(&self, id: PortId, socket: OwnedFd) {
        self.lock().entry(id).or_insert(socket);
    }

    /// A copy of the workload's socket; bound when none is held.
    pub fn listening(&self, workload: &WorkloadRow) -> Result<OwnedFd, SocketError> {
        let path = self.runtime.vm_socket(&workload.name)?;
        let io = |source| SocketError::Io { path: path.display().to_string(), source };
        let mut held = self.lock();
        let socket = match held.remove(&workload.id) {
            Some(socket) => socket,
            None => bind(&path, workload.attachment.unwrap_or_default()).map_err(io)?,
        };
        let copy = socket.try_clone().map_err(io);
        held.insert(workload.id, socket);
        copy
    }

    /// Lets go of every socket without a row, and removes its path.
    pub fn settle(&self, rows: &[WorkloadRow]) {
        self.lock().retain(|id, _| rows.iter().any(|row| row.id == *id));
        let Ok(entries) = fs::read_dir(self.runtime.vm_sockets()) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            // Beside our sockets lie those that monitors of theirs have bound.
            let wanted = rows.iter().any(|row| {
                let extension = name.to_str().and_then(|name| name.strip_prefix(&row.name));
                matches!(extension, Some(".sock" | ".peer"))
            });
            if !wanted && let Err(error) = fs::remove_file(entry.path()) {
                tracing::warn!(path = %entry.path().display(), %error, "a stale socket stays");
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PortId, OwnedFd>> {
        self.held.lock().expect("nobody panics while holding it")
    }
}

/// Binds under another name and moves it into place, so that a monitor that connects again finds the old
/// socket or the new one, never none.
fn bind(path: &Path, attachment: VmAttachment) -> io::Result<OwnedFd> {
    let directory = path.parent().expect("a socket lies in a directory");
    match fs::DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    // Not longer than the name that was checked: at least ".sock" follows the first character.
    let fresh = directory.join(".new");
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = match attachment {
        VmAttachment::VhostUser | VmAttachment::Stream => {
            let listener = UnixListener::bind(&fresh)?;
            listener.set_nonblocking(true)?;
            OwnedFd::from(listener)
        }
        VmAttachment::Dgram => UnixDatagram::bind(&fresh)?.into(),
    };
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600))?;
    fs::rename(&fresh, path)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use lichen_api::{Directories, WorkloadKind};
    use lichen_netstack::ids::{MacAddr, NetworkId};

    use super::*;

    fn row(id: u32, name: &str) -> WorkloadRow {
        let address = std::net::Ipv4Addr::new(10, 88, 0, 2);
        WorkloadRow {
            id: PortId(id),
            uid: String::new(),
            name: name.to_owned(),
            kind: WorkloadKind::Vm,
            attachment: Some(VmAttachment::VhostUser),
            queues: 1,
            network: NetworkId(1),
            address,
            mac: MacAddr::for_ipv4(address),
            allow_host: Vec::new(),
            resolv_conf: false,
            boot_id: String::new(),
            created: String::new(),
            created_at: 0,
            process: None,
        }
    }

    #[test]
    fn a_path_outlives_each_holder_and_goes_with_its_row() {
        let base = std::env::temp_dir().join(format!("lichen-vm-sockets-{}", std::process::id()));
        fs::create_dir_all(&base).unwrap();
        let runtime = Directories::prepare_in(&base).unwrap().runtime;
        let path = runtime.vm_socket("db").unwrap();
        let first = VmSockets::new(runtime.clone());
        let datapath = first.listening(&row(1, "db")).unwrap();
        UnixStream::connect(&path).unwrap();
        // Control dies; the next one takes the datapath's copy, or binds anew when there is none.
        drop(first);
        UnixStream::connect(&path).unwrap();
        let second = VmSockets::new(runtime.clone());
        second.adopt(PortId(1), datapath);
        second.settle(&[row(1, "db")]);
        UnixStream::connect(&path).unwrap();
        drop(second);
        assert!(UnixStream::connect(&path).is_err());
        let third = VmSockets::new(runtime);
        third.listening(&row(1, "db")).unwrap();
        UnixStream::connect(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let peer = path.with_extension("peer");
        drop(UnixDatagram::bind(&peer).unwrap());
        third.settle(&[row(1, "db")]);
        assert!(path.exists() && peer.exists());
        third.settle(&[]);
        assert!(!path.exists() && !peer.exists());
        fs::remove_dir_all(&base).unwrap();
    }
}
