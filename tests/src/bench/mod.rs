//! How fast: lichen beside pasta, slirp4netns and the plain loopback, on one host of the lab.
//!
//! Everything on the host runs as the lab's plain uid with its defaults; reno on both sides, since bbr's
//! pacing ruins loopback figures. Rounds take the contenders in rotating order, so that a machine that
//! grows warm or busy does not always hurt the same one.

mod contender;
mod datagrams;
mod latency;
mod processor;
mod report;
mod summary;
mod throughput;

use std::process::ExitCode;

use contender::Contender;
use datagrams::Datagrams;
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
    datagrams: Vec<Datagrams>,
    latency: Vec<Latency>,
}

/// What can be measured by itself.
const PARTS: [&str; 3] = ["throughput", "datagrams", "latency"];

/// `words`: how many rounds, and which parts if not all.
pub(crate) fn run(words: &[&str]) -> ExitCode {
    let (rounds, parts) = match words {
        [first, parts @ ..] if first.parse::<usize>().is_ok() => {
            (first.parse().unwrap_or(ROUNDS), parts)
        }
        parts => (ROUNDS, parts),
    };
    if let Some(unknown) = parts.iter().find(|part| !PARTS.contains(part)) {
        eprintln!("`{unknown}` is not one of: {}", PARTS.join(", "));
        return ExitCode::FAILURE;
    }
    let wanted = |part: &str| parts.is_empty() || parts.contains(&part);
    let lab = Lab::new();
    let setting = contender::prepare(&lab);
    let mut measured = Measurements::default();
    for round in 0..rounds {
        for contender in Contender::rotated(round) {
            for direction in Direction::ALL.into_iter().filter(|_| wanted("throughput")) {
                measured.throughput.extend(throughput::measure(&lab, contender, direction, round));
            }
            for size in datagrams::SIZES.into_iter().filter(|_| wanted("datagrams")) {
                for direction in datagrams::DIRECTIONS {
                    let run = datagrams::measure(&lab, contender, direction, size, round);
                    measured.datagrams.extend(run);
                }
            }
        }
    }
    for cores in [Cores::AsTheyAre, Cores::KeptAwake].into_iter().filter(|_| wanted("latency")) {
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
