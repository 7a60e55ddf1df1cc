//! Where Lichen's sockets and state lie, and who may own them.
//!
//! Runtime: `$XDG_RUNTIME_DIR/lichen`, else `/tmp/lichen-UID`; mode 0700, ours, never a symbolic link.
//! State: `$XDG_STATE_HOME/lichen`, else `$HOME/.local/state/lichen`; ours, writable by nobody else.

use std::env;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Longest path of a unix socket, in bytes (`sun_path` less its closing NUL).
pub const MAX_SOCKET_PATH: usize = 107;

/// Why a directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// There is no place to keep state.
    #[error(
        "no directory to keep state in: HOME is not set and uid {0} has no entry in /etc/passwd; \
         set HOME, or set XDG_STATE_HOME to a directory of yours"
    )]
    NoHome(u32),
    /// An environment variable does not hold an absolute path.
    #[error("{variable} is `{value}`, which is not an absolute path; correct or unset it")]
    NotAbsolute {
        /// Which variable.
        variable: &'static str,
        /// What it holds.
        value: String,
    },
    /// A socket's path does not fit.
    #[error(
        "the socket path {path} is {len} bytes long and unix allows {MAX_SOCKET_PATH}; \
         set XDG_RUNTIME_DIR to a shorter directory"
    )]
    SocketPathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length.
        len: usize,
    },
    /// It is not a directory.
    #[error("{0} is not a directory; move it away")]
    NotADirectory(PathBuf),
    /// Somebody else's.
    #[error("{path} belongs to uid {owner}, not to uid {uid}; remove it or name another directory")]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Who owns it.
        owner: u32,
        /// Who we are.
        uid: u32,
    },
    /// Others could change what is in it.
    #[error("{path} has mode {mode:04o}, so others could interfere; run: chmod 700 {path}")]
    TooOpen {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// We cannot write into it.
    #[error("{0} is not writable; make it writable or name another directory")]
    ReadOnly(PathBuf),
    /// The file system said no.
    #[error("cannot use {path}")]
    Io {
        /// The directory.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
}

/// Both directories.
#[derive(Clone, Debug)]
pub struct Directories {
    /// Sockets and locks.
    pub runtime: RuntimeDirectory,
    /// Database and logs.
    pub state: StateDirectory,
}

impl Directories {
    /// The directories of this process's user and environment, made if missing, and checked.
    pub fn prepare() -> Result<Self, DirectoryError> {
        let uid = rustix::process::getuid().as_raw();
        let state = StateDirectory::locate(uid, |name| env::var_os(name).map(PathBuf::from))?;
        Ok(Self { runtime: RuntimeDirectory::prepare()?, state: state.checked(uid)? })
    }

    /// Directories below `base`, made if missing, and checked; for tests that must not meet.
    pub fn prepare_in(base: &Path) -> Result<Self, DirectoryError> {
        let uid = rustix::process::getuid().as_raw();
        Ok(Self {
            runtime: RuntimeDirectory(base.join("run")).checked(uid)?,
            state: StateDirectory(base.join("state")).checked(uid)?,
        })
    }
}

/// Where the sockets are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeDirectory(PathBuf);

impl RuntimeDirectory {
    /// The runtime directory of this process's user and environment, made if missing, and checked.
    pub fn prepare() -> Result<Self, DirectoryError> {
        let uid = rustix::process::getuid().as_raw();
        Self::locate(uid, |name| env::var_os(name).map(PathBuf::from))?.checked(uid)
    }

    fn locate(
        uid: u32,
        variable: impl Fn(&str) -> Option<PathBuf>,
    ) -> Result<Self, DirectoryError> {
        let path = match absolute("XDG_RUNTIME_DIR", &variable)? {
            // A variable that outlived its session is as good as none.
            Some(directory) if directory.is_dir() => directory.join("lichen"),
            _ => PathBuf::from(format!("/tmp/lichen-{uid}")),
        };
        let this = Self(path);
        fitting(this.datapath_socket())?;
        Ok(this)
    }

    fn checked(self, uid: u32) -> Result<Self, DirectoryError> {
        make(&self.0)?;
        check(&self.0, uid, 0o077)?;
        Ok(self)
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The API's socket.
    pub fn control_socket(&self) -> PathBuf {
        self.0.join("control.sock")
    }

    /// The datapath's socket.
    pub fn datapath_socket(&self) -> PathBuf {
        self.0.join("datapath.sock")
    }

    /// Where the sockets of virtual machines are.
    pub fn vm_sockets(&self) -> PathBuf {
        self.0.join("vm")
    }

    /// Where the virtual machine of that name connects. `name` is a checked workload name, never a path.
    pub fn vm_socket(&self, name: &str) -> Result<PathBuf, DirectoryError> {
        fitting(self.vm_sockets().join(format!("{name}.sock")))
    }

    /// Locked by the one daemon as long as it lives.
    pub fn control_lock(&self) -> PathBuf {
        self.0.join("control.lock")
    }

    /// Locked by whoever is about to start a daemon.
    pub fn start_lock(&self) -> PathBuf {
        self.0.join("start.lock")
    }
}

/// Where database and logs are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateDirectory(PathBuf);

impl StateDirectory {
    fn locate(
        uid: u32,
        variable: impl Fn(&str) -> Option<PathBuf>,
    ) -> Result<Self, DirectoryError> {
        if let Some(state) = absolute("XDG_STATE_HOME", &variable)? {
            return Ok(Self(state.join("lichen")));
        }
        let home = match absolute("HOME", &variable)? {
            Some(home) => home,
            None => home_in_passwd(uid).ok_or(DirectoryError::NoHome(uid))?,
        };
        Ok(Self(home.join(".local/state/lichen")))
    }

    fn checked(self, uid: u32) -> Result<Self, DirectoryError> {
        make(&self.0)?;
        check(&self.0, uid, 0o022)?;
        let logs = self.0.join("logs");
        make(&logs)?;
        check(&logs, uid, 0o022)?;
        // Permission bits do not tell of a read-only mount, so a file is really made.
        let probe = self.0.join(".writable");
        fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&probe)
            .and_then(|_| fs::remove_file(&probe))
            .map_err(|source| match source.kind() {
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                    DirectoryError::ReadOnly(self.0.clone())
                }
                _ => DirectoryError::Io { path: self.0.clone(), source },
            })?;
        Ok(self)
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Everything that must survive.
    pub fn database(&self) -> PathBuf {
        self.0.join("lichen.db")
    }

    /// The daemon's log when nobody watches its standard error.
    pub fn daemon_log(&self) -> PathBuf {
        self.0.join("daemon.log")
    }

    /// The datapath's log.
    pub fn datapath_log(&self) -> PathBuf {
        self.0.join("datapath.log")
    }

    /// Output of a detached workload. `name` is a checked workload name, never a path.
    pub fn workload_log(&self, name: &str) -> PathBuf {
        self.0.join("logs").join(format!("{name}.log"))
    }
}

/// A socket's path, if a socket can have it.
fn fitting(path: PathBuf) -> Result<PathBuf, DirectoryError> {
    match path.as_os_str().len() {
        len if len > MAX_SOCKET_PATH => Err(DirectoryError::SocketPathTooLong { path, len }),
        _ => Ok(path),
    }
}

fn absolute(
    name: &'static str,
    variable: impl Fn(&str) -> Option<PathBuf>,
) -> Result<Option<PathBuf>, DirectoryError> {
    match variable(name) {
        Some(path) if path.as_os_str().is_empty() => Ok(None),
        Some(path) if path.is_absolute() => Ok(Some(path)),
        Some(path) => {
            Err(DirectoryError::NotAbsolute { variable: name, value: path.display().to_string() })
        }
        None => Ok(None),
    }
}

fn home_in_passwd(uid: u32) -> Option<PathBuf> {
    home_of(uid, &fs::read_to_string("/etc/passwd").ok()?)
}

fn home_of(uid: u32, passwd: &str) -> Option<PathBuf> {
    passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let home = PathBuf::from(*fields.get(5)?);
        (fields[2] == uid.to_string() && home.is_absolute()).then_some(home)
    })
}

fn make(path: &Path) -> Result<(), DirectoryError> {
    let result = DirBuilder::new().recursive(true).mode(0o700).create(path);
    match result {
        Ok(()) => Ok(()),
        Err(source) => match source.kind() {
            io::ErrorKind::AlreadyExists => Err(DirectoryError::NotADirectory(path.to_owned())),
            io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
                Err(DirectoryError::ReadOnly(path.to_owned()))
            }
            _ => Err(DirectoryError::Io { path: path.to_owned(), source }),
        },
    }
}

fn check(path: &Path, uid: u32, forbidden: u32) -> Result<(), DirectoryError> {
    let metadata = fs::symlink_metadata(path)
        .map_err(|source| DirectoryError::Io { path: path.to_owned(), source })?;
    let mode = metadata.mode() & 0o7777;
    if !metadata.is_dir() {
        Err(DirectoryError::NotADirectory(path.to_owned()))
    } else if metadata.uid() != uid {
        Err(DirectoryError::Foreign { path: path.to_owned(), owner: metadata.uid(), uid })
    } else if mode & forbidden != 0 {
        Err(DirectoryError::TooOpen { path: path.to_owned(), mode })
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    /// A directory of a test's own, removed with it.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = env::temp_dir().join(format!("lichen-api-{}-{name}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn me() -> u32 {
        rustix::process::getuid().as_raw()
    }

    #[test]
    fn without_a_runtime_dir_the_sockets_are_in_tmp_under_our_uid() {
        let found = RuntimeDirectory::locate(1234, |_| None).unwrap();
        assert_eq!(found.path(), Path::new("/tmp/lichen-1234"));
        let gone = RuntimeDirectory::locate(1234, |_| Some("/nonexistent/run".into())).unwrap();
        assert_eq!(gone.path(), Path::new("/tmp/lichen-1234"));
    }

    #[test]
    fn a_socket_path_that_does_not_fit_is_refused_with_its_length() {
        let scratch = Scratch::new("long");
        let long = scratch.0.join("x".repeat(110));
        fs::create_dir(&long).unwrap();
        let error = RuntimeDirectory::locate(1, |_| Some(long.clone())).unwrap_err();
        assert!(error.to_string().contains("set XDG_RUNTIME_DIR to a shorter"), "{error}");
    }

    #[test]
    fn without_home_and_passwd_entry_the_remedy_is_named() {
        let error = StateDirectory::locate(3_999_999_999, |_| None).unwrap_err();
        assert!(error.to_string().contains("set XDG_STATE_HOME"), "{error}");
        let passwd = "root:x:0:0:root:/root:/bin/sh\nme:x:1000:1000::/home/me:/bin/sh\nbad\n";
        assert_eq!(home_of(1000, passwd), Some("/home/me".into()));
        assert_eq!(home_of(1001, passwd), None);
    }

    #[test]
    fn a_relative_state_home_is_refused() {
        let error = StateDirectory::locate(1, |_| Some("state".into())).unwrap_err();
        assert!(matches!(error, DirectoryError::NotAbsolute { .. }));
    }

    #[test]
    fn a_new_directory_is_ours_alone() {
        let scratch = Scratch::new("new");
        let state = StateDirectory(scratch.0.join("a/lichen")).checked(me()).unwrap();
        let mode = fs::metadata(state.path()).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o700);
    }

    #[test]
    fn a_directory_that_others_can_write_is_refused_by_name() {
        let scratch = Scratch::new("open");
        fs::set_permissions(&scratch.0, fs::Permissions::from_mode(0o770)).unwrap();
        let error = StateDirectory(scratch.0.clone()).checked(me()).unwrap_err();
        assert!(matches!(error, DirectoryError::TooOpen { .. }), "{error}");
        assert!(error.to_string().contains("chmod 700"), "{error}");
    }

    #[test]
    fn a_symbolic_link_in_place_of_the_directory_is_refused() {
        let scratch = Scratch::new("link");
        let link = scratch.0.join("lichen");
        symlink("/tmp", &link).unwrap();
        let error = RuntimeDirectory(link).checked(me()).unwrap_err();
        assert!(matches!(error, DirectoryError::NotADirectory(_)), "{error}");
    }

    #[test]
    fn a_directory_of_somebody_else_is_refused() {
        let scratch = Scratch::new("foreign");
        fs::set_permissions(&scratch.0, fs::Permissions::from_mode(0o700)).unwrap();
        let error = RuntimeDirectory(scratch.0.clone()).checked(me() + 1).unwrap_err();
        assert!(matches!(error, DirectoryError::Foreign { .. }), "{error}");
    }
}
