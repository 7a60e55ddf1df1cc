//! An `errno` that can travel between a role and the process that started it.

use std::{error, fmt, io};

use serde::{Deserialize, Serialize};

/// What the kernel answered. Shown as the system's own text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OsError(i32);

impl OsError {
    /// The `errno` itself.
    pub fn raw(self) -> i32 {
        self.0
    }

    /// Whether the kernel refused for want of permission (EPERM or EACCES).
    pub fn is_refusal(self) -> bool {
        self.0 == libc::EPERM || self.0 == libc::EACCES
    }
}

impl fmt::Display for OsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        io::Error::from_raw_os_error(self.0).fmt(f)
    }
}

impl error::Error for OsError {}

impl From<rustix::io::Errno> for OsError {
    fn from(errno: rustix::io::Errno) -> Self {
        Self(errno.raw_os_error())
    }
}

/// An error that the standard library made up itself counts as EIO.
impl From<io::Error> for OsError {
    fn from(error: io::Error) -> Self {
        Self(error.raw_os_error().unwrap_or(libc::EIO))
    }
}
