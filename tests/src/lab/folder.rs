//! The files of one lab.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use super::root::is_real_root;

/// The person's uid and gid on the host.
pub(super) const PERSON: u32 = 1000;

/// A folder that everybody can enter, with the program and the person's directories in it.
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("lichen-lab-{}-{number}", std::process::id());
        let folder = Self(std::env::temp_dir().join(name));
        for (directory, mode) in [
            ("", 0o755),
            ("bin", 0o755),
            ("site", 0o755),
            ("logs", 0o755),
            ("home", 0o755),
            // As systemd makes it.
            ("run", 0o700),
        ] {
            folder.make(directory, mode);
        }
        let lab = std::env::current_exe().expect("this program has a path");
        let product = lab.with_file_name("lichen");
        for (source, name) in [(product, "lichen"), (lab, "lichen-lab")] {
            let copied = fs::copy(&source, folder.path("bin").join(name));
            copied.unwrap_or_else(|error| panic!("{}: {error}; build it first", source.display()));
        }
        fs::write(folder.path("site/index.html"), "hello from a workload\n").expect("our folder");
        folder
    }

    fn make(&self, directory: &str, mode: u32) {
        let path = self.path(directory);
        fs::create_dir(&path).expect("a fresh folder");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("our own folder");
        if is_real_root() {
            chown(&path, Some(PERSON), Some(PERSON)).expect("root may give folders away");
        }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // A process that was just killed may still close its files; the folder lies in /tmp anyway.
        let _ = fs::remove_dir_all(&self.0);
    }
}
