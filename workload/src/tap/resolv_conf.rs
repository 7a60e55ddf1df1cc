//! Writing the `/etc/resolv.conf` of a container whose files are not ours to trust.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::BorrowedFd;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, openat2};

/// Writes the file below `root`, an O_PATH descriptor of the container's root; creates it if missing.
///
/// The kernel resolves the name with the container's root as `/`, so that a symbolic link or `..` in
/// the container leads to its own files and never to the host's.
pub(super) fn write(root: BorrowedFd<'_>, content: &str) -> io::Result<()> {
    let file = openat2(
        root,
        "etc/resolv.conf",
        // Not O_TRUNC: what is opened is judged first. O_NONBLOCK: a FIFO must not hold us.
        OFlags::WRONLY | OFlags::CREATE | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC,
        Mode::from_raw_mode(0o644),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode);
    if kind != FileType::RegularFile {
        return Err(rustix::io::Errno::INVAL.into());
    }
    rustix::fs::ftruncate(&file, 0)?;
    File::from(file).write_all(content.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsFd as _;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    use super::*;

    /// A container's root with an empty /etc, and a file of the host beside it.
    struct Roots {
        folder: PathBuf,
        container: PathBuf,
        host_file: PathBuf,
    }

    impl Roots {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("lichen-{name}-{}", std::process::id()));
            let container = folder.join("container");
            fs::create_dir_all(container.join("etc")).unwrap();
            let host_file = folder.join("host-file");
            fs::write(&host_file, "the host's").unwrap();
            Self { folder, container, host_file }
        }

        fn write(&self) -> io::Result<()> {
            write(File::open(&self.container).unwrap().as_fd(), "nameserver 10.88.0.1\n")
        }

        fn assert_host_untouched(&self) {
            assert_eq!(fs::read_to_string(&self.host_file).unwrap(), "the host's");
        }
    }

    impl Drop for Roots {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }

    #[test]
    fn a_missing_file_is_created() {
        let roots = Roots::new("missing");
        roots.write().unwrap();
        let written = fs::read_to_string(roots.container.join("etc/resolv.conf")).unwrap();
        assert_eq!(written, "nameserver 10.88.0.1\n");
    }

    #[test]
    fn a_longer_file_is_replaced_whole() {
        let roots = Roots::new("longer");
        let file = roots.container.join("etc/resolv.conf");
        fs::write(&file, "nameserver 192.0.2.1\n".repeat(100)).unwrap();
        roots.write().unwrap();
        assert_eq!(fs::read_to_string(file).unwrap(), "nameserver 10.88.0.1\n");
    }

    #[test]
    fn an_absolute_link_stays_in_the_container() {
        let roots = Roots::new("absolute");
        symlink(&roots.host_file, roots.container.join("etc/resolv.conf")).unwrap();
        let inner = roots.container.join(roots.host_file.strip_prefix("/").unwrap());
        fs::create_dir_all(inner.parent().unwrap()).unwrap();

        roots.write().unwrap();

        roots.assert_host_untouched();
        assert_eq!(fs::read_to_string(inner).unwrap(), "nameserver 10.88.0.1\n");
    }

    #[test]
    fn a_link_that_climbs_out_stays_in_the_container() {
        let roots = Roots::new("climbs");
        symlink("../../../host-file", roots.container.join("etc/resolv.conf")).unwrap();
        roots.write().unwrap();
        roots.assert_host_untouched();
        assert!(roots.container.join("host-file").exists());
    }

    #[test]
    fn a_fifo_neither_blocks_nor_is_written() {
        let roots = Roots::new("fifo");
        let fifo = roots.container.join("etc/resolv.conf");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o644), 0)
            .unwrap();
        assert!(roots.write().is_err());
        let _reader =
            rustix::fs::open(&fifo, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()).unwrap();
        assert!(roots.write().is_err());
    }
}
