//! Archives as Linux unpacks them into its first file system (`newc`, Documentation/driver-api/early-userspace).

/// An archive in the making.
#[derive(Debug, Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    pub(super) fn directory(&mut self, path: &str) {
        self.entry(path, 0o040_755, &[], (0, 0));
    }

    pub(super) fn program(&mut self, path: &str, content: &[u8]) {
        self.entry(path, 0o100_755, content, (0, 0));
    }

    pub(super) fn link(&mut self, path: &str, target: &str) {
        self.entry(path, 0o120_777, target.as_bytes(), (0, 0));
    }

    pub(super) fn character_device(&mut self, path: &str, number: (u32, u32)) {
        self.entry(path, 0o020_600, &[], number);
    }

    /// The whole archive.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[], (0, 0));
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8], (major, minor): (u32, u32)) {
        self.entries += 1;
        let length = |len: usize| u32::try_from(len).expect("files of an image are small");
        let fields = [
            self.entries,
            mode,
            0, // uid
            0, // gid
            1, // links
            0, // time
            length(content.len()),
            0,
            0,
            major,
            minor,
            length(path.len() + 1),
            0, // checksum, not in this format
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn busybox_lists_what_was_put_in() {
        let mut archive = Archive::default();
        archive.directory("bin");
        archive.program("bin/init", b"#!/bin/sh\n");
        archive.link("bin/sh", "busybox");
        let mut list = Command::new("busybox")
            .args(["cpio", "-t"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        list.stdin.take().unwrap().write_all(&archive.finish()).unwrap();
        let listed = String::from_utf8(list.wait_with_output().unwrap().stdout).unwrap();
        assert_eq!(listed, "bin\nbin/init\nbin/sh\n");
    }
}
