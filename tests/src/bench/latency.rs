//! One byte there, one byte back, for ten seconds.

use std::thread;
use std::time::Duration;

use serde::Serialize;

use super::contender::{Contender, ECHO, PATIENCE};
use super::missing::why;
use crate::lab::{Background, Lab, try_within};

/// What the cores do between two packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Cores {
    /// They sleep; waking up a virtual machine's core is most of what is measured then.
    AsTheyAre,
    /// A SCHED_IDLE spinner on each keeps it awake and gives way to everything.
    KeptAwake,
}

impl Cores {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::AsTheyAre => "cores as they are",
            Self::KeptAwake => "cores kept awake",
        }
    }
}

/// One run.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Latency {
    pub(super) contender: Contender,
    pub(super) cores: Cores,
    pub(super) exchanges: u64,
    pub(super) p50_microseconds: f64,
    pub(super) p99_microseconds: f64,
}

/// An error says why there is no figure.
pub(super) fn measure(lab: &Lab, contender: Contender, cores: Cores) -> Result<Latency, String> {
    let spinners = match cores {
        Cores::AsTheyAre => Vec::new(),
        Cores::KeptAwake => spin(lab),
    };
    let program = lab.path("bin/lichen-lab").display().to_string();
    let asking = [&program, "peer", "ask", contender.host_address(), ECHO, "10"];
    let outcome =
        try_within(Duration::from_secs(PATIENCE + 10), &mut contender.command(lab, &asking));
    drop(spinners);
    let printed = outcome.as_ref().map_or("", |outcome| &outcome.out);
    let figures: Vec<f64> =
        printed.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [exchanges, p50_microseconds, p99_microseconds] = figures[..] else {
        return Err(why(&outcome));
    };
    eprintln!("{}, {}: p50 {p50_microseconds:.0} µs", contender.name(), cores.name());
    let exchanges = exchanges as u64;
    Ok(Latency { contender, cores, exchanges, p50_microseconds, p99_microseconds })
}

fn spin(lab: &Lab) -> Vec<Background> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let spinner = ["chrt", "--idle", "0", "sh", "-c", "while :; do :; done"];
    (0..cores).map(|_| lab.host().start_in_background(&spinner)).collect()
}
