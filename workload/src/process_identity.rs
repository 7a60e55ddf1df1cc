//! Which process and which namespace a pid means.

use std::os::unix::fs::MetadataExt as _;
use std::{fs, io};

/// Field 22 of `/proc/PID/stat`: when the process started, in clock ticks since boot. With the pid it
/// names a process for as long as the machine runs (proc_pid_stat(5)).
pub fn start_time_of(pid: i32) -> io::Result<u64> {
    start_time_in(&fs::read_to_string(format!("/proc/{pid}/stat"))?)
}

/// Device and inode of a process's network namespace; equal pairs are equal namespaces.
pub fn netns_of(pid: i32) -> io::Result<(u64, u64)> {
    let namespace = fs::metadata(format!("/proc/{pid}/ns/net"))?;
    Ok((namespace.dev(), namespace.ino()))
}

/// The start time in the text of a `stat` file. The second field is the program's name in parentheses,
/// which may itself hold spaces and parentheses: counting starts after the last one.
pub(crate) fn start_time_in(stat: &str) -> io::Result<u64> {
    stat.rsplit_once(')')
        .and_then(|(_, after_name)| after_name.split_whitespace().nth(19))
        .and_then(|field| field.parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no start time in stat"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_name_with_parentheses_does_not_shift_the_fields() {
        let mut stat = String::from("7 (a) b (c) S 1 7 7 0 -1 4194304 10 0 0 0 0 0 0 0 20 0 1 0 ");
        stat.push_str("4242 99 1");
        assert_eq!(start_time_in(&stat).unwrap(), 4242);
    }

    #[test]
    fn a_process_has_one_start_time_and_one_network_namespace() {
        let pid = std::process::id().cast_signed();
        assert_eq!(start_time_of(pid).unwrap(), start_time_of(pid).unwrap());
        assert_eq!(netns_of(pid).unwrap(), netns_of(pid).unwrap());
    }

    #[test]
    fn a_truncated_stat_is_an_error() {
        assert!(start_time_in("7 (a) S 1 7").is_err());
    }
}
