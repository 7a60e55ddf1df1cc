//! How fast: lichen beside pasta, slirp4netns and the plain loopback, on one host of the lab.
//!
//! Everything on the host runs as the lab's plain uid with its defaults; reno on both sides, since bbr's
//! pacing ruins loopback figures. Rounds take the contenders in rotating order, so that a machine that
//! grows warm or busy does not always hurt the same one.

mod connections;
mod contender;
mod datagrams;
mod goals;
mod idle;
mod latency;
mod missing;
mod processor;
mod raw;
mod report;
mod summary;
mod throughput;

use std::process::ExitCode;

use connections::Connections;
use contender::Contender;
use datagrams::Datagrams;
use idle::Idle;
use latency::{Cores, Latency};
use missing::Missing;
pub(crate) use summary::percentile;
use throughput::{Kind, Throughput};

use crate::lab::Lab;

/// Rounds unless told otherwise.
const ROUNDS: usize = 5;

/// Everything that was measured.
#[derive(Debug, Default)]
struct Measurements {
    throughput: Vec<Throughput>,
    datagrams: Vec<Datagrams>,
    connections: Vec<Connections>,
    latency: Vec<Latency>,
    idle: Vec<Idle>,
    missing: Vec<Missing>,
}

/// What can be measured by itself.
const PARTS: [&str; 8] =
    ["throughput", "ipv6", "streams", "datagrams", "connections", "latency", "idle", "loss"];

/// `words`: whether the peers are measured too, how many rounds, and which parts if not all.
pub(crate) fn run(words: &[&str]) -> ExitCode {
    let (with_peers, words) = match words {
        ["--peers", words @ ..] => (true, words),
        ["--no-peers", words @ ..] => (false, words),
        words => (true, words),
    };
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
    let contenders =
        |round| Contender::rotated(round).into_iter().filter(|it| with_peers || !it.is_peer());
    let wanted = |part: &str| parts.is_empty() || parts.contains(&part);
    let lab = Lab::new();
    let setting = contender::prepare(&lab);
    let mut measured = Measurements::default();
    for round in 0..rounds {
        for contender in contenders(round) {
            for kind in [Kind::OneStream, Kind::OneStream6, Kind::FourStreams] {
                measured.measure_throughput(&lab, kind, contender, round, wanted);
            }
            if wanted("datagrams") {
                measured.measure_datagrams(&lab, contender, round);
            }
            if wanted("connections") {
                measured.measure_connections(&lab, contender, round);
            }
        }
        if wanted("idle") {
            let run = idle::measure(&lab, round);
            let idle = measured.note("idle", Contender::Lichen, "", round, run);
            measured.idle.extend(idle);
        }
    }
    for cores in [Cores::AsTheyAre, Cores::KeptAwake].into_iter().filter(|_| wanted("latency")) {
        for contender in contenders(0) {
            let run = latency::measure(&lab, contender, cores);
            let latency = measured.note("latency", contender, cores.name(), 0, run);
            measured.latency.extend(latency);
        }
    }
    // Last, as it leaves the host without a link.
    for round in 0..rounds {
        for contender in contenders(round) {
            measured.measure_throughput(&lab, Kind::BadLink, contender, round, wanted);
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

impl Measurements {
    fn measure_throughput(
        &mut self,
        lab: &Lab,
        kind: Kind,
        contender: Contender,
        round: usize,
        wanted: impl Fn(&str) -> bool,
    ) {
        for direction in kind.directions().iter().filter(|_| wanted(kind.part())) {
            let run = throughput::measure(lab, kind, contender, *direction, round);
            let run = self.note(kind.part(), contender, direction.name(), round, run);
            self.throughput.extend(run);
        }
    }

    fn measure_datagrams(&mut self, lab: &Lab, contender: Contender, round: usize) {
        for kind in datagrams::Ends::ALL.into_iter().flat_map(datagrams::Kind::all) {
            let run = datagrams::measure(lab, contender, kind, round);
            let run = self.note("datagrams", contender, &kind.full_name(), round, run);
            self.datagrams.extend(run);
        }
    }

    fn measure_connections(&mut self, lab: &Lab, contender: Contender, round: usize) {
        for direction in connections::DIRECTIONS {
            for at_once in connections::AT_ONCE {
                let run = connections::measure(lab, contender, direction, at_once, round);
                let what = format!("{}, {at_once} at once", direction.name());
                let run = self.note("connections", contender, &what, round, run);
                self.connections.extend(run);
            }
        }
    }

    /// Notes why there is no figure; the bench goes on.
    fn note<T>(
        &mut self,
        part: &'static str,
        contender: Contender,
        what: &str,
        round: usize,
        run: Result<T, String>,
    ) -> Option<T> {
        run.inspect_err(|why| {
            eprintln!("round {round}: {part}: {} {what}: no figure: {why}", contender.name());
            let (what, why) = (what.to_owned(), why.clone());
            self.missing.push(Missing { part, contender, what, round, why });
        })
        .ok()
    }

    /// What stands in a cell without a figure.
    fn empty(&self, part: &str, contender: Contender, what: &str) -> String {
        let why = self.missing.iter().rev().find(|missing| {
            missing.part == part && missing.contender == contender && missing.what == what
        });
        why.map_or("–".to_owned(), |missing| {
            format!("– ({})", missing.why.replace(['|', '\n'], " "))
        })
    }
}
