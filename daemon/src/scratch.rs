//! A directory of a test's own, removed with it.

use std::fs;
use std::path::{Path, PathBuf};

/// The directory.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// A new, empty directory whose name tells the test.
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("lichen-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("the temporary directory is writable");
        Self(path)
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runtime and state directory in a scratch directory.
pub(crate) fn directories(scratch: &Scratch) -> lichen_api::Directories {
    lichen_api::Directories::prepare_in(scratch.path()).expect("a scratch directory is ours")
}
