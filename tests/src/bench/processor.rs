//! Processor time of everything that the bench started.

use std::collections::HashMap;
use std::fs;
use std::time::Duration;

/// Time that this process and all its descendants have used so far, those that have ended included: a
/// process that is waited for leaves its time to the one that waits (proc_pid_stat(5), cutime).
pub(super) fn used() -> Duration {
    let processes: HashMap<u32, Stat> = fs::read_dir("/proc")
        .expect("a mounted /proc")
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, Stat::of(pid)?)))
        .collect();
    let ours = std::process::id();
    let is_ours = |mut pid: u32| loop {
        if pid == ours {
            return true;
        }
        match processes.get(&pid) {
            Some(stat) if stat.parent != pid => pid = stat.parent,
            _ => return false,
        }
    };
    let ticks: u64 =
        processes.iter().filter(|(pid, _)| is_ours(**pid)).map(|(_, stat)| stat.ticks).sum();
    Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

struct Stat {
    parent: u32,
    ticks: u64,
}

impl Stat {
    fn of(pid: u32) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name before may hold spaces and parentheses.
        let fields: Vec<&str> = text.rsplit_once(") ")?.1.split_whitespace().collect();
        let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
        let ticks = (11..=14).map(number).sum::<Option<u64>>()?;
        Some(Self { parent: u32::try_from(number(1)?).ok()?, ticks })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_that_has_ended_still_counts() {
        let before = used();
        let spin = "i=0; while [ $i -lt 300000 ]; do i=$((i + 1)); done";
        std::process::Command::new("sh").args(["-c", spin]).status().unwrap();
        assert!(used() > before);
    }
}
