//! How fast: lichen beside pasta, slirp4netns and the plain loopback, on one host of the lab.
//!
//! Everything on the host runs as the lab's plain uid with its defaults; reno on both sides, since bbr's
//! pacing ruins loopback figures. Rounds take the contenders in rotating order, so that a machine that
//! grows warm or busy does not always hurt the same one.

mod contender;
mod latency;
mod processor;
mod report;
mod summary;
mod throughput;

use std::process::ExitCode;

use contender::Contender;
use latency::{Cores, Latency};
pub(crate) use summary::percentile;
use throughput::{Direction, Throughput};

use crate::lab::Lab;

/// Rounds unless told otherwise.
const ROUNDS: usize = 5;

/// Everything that was measured.
#[derive(Debug, Default, serde::Serialize)]
struct Measurements {
    throughput: Vec<Throughput>,
    latency: Vec<Latency>,
}

pub(crate) fn run(words: &[&str]) -> ExitCode {
    let rounds = match words {
        [] => ROUNDS,
        [number] => number.parse().unwrap_or(ROUNDS),
        _ => return ExitCode::FAILURE,
    };
    let lab = Lab::new();
    let setting = contender::prepare(&lab);
    let mut measured = Measurements::default();
    for round in 0..rounds {
        for contender in Contender::rotated(round) {
            for direction in Direction::ALL {
                measured.throughput.extend(throughput::measure(&lab, contender, direction, round));
            }
        }
    }
    for cores in [Cores::AsTheyAre, Cores::KeptAwake] {
        for contender in Contender::rotated(0) {
            measured.latency.extend(latency::measure(&lab, contender, cores));
        }
    }
    drop(setting);
    match report::write(&lab, &measured) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("docs/performance: {error}");
            ExitCode::FAILURE
        }
    }
}
