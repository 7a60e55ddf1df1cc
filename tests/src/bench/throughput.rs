//! One TCP stream for eight seconds.

use std::process::Command;
use std::time::Duration;

use serde::Serialize;

use super::contender::{Contender, IPERF};
use super::processor;
use crate::lab::{Lab, try_within};

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Direction {
    /// From inside to the host.
    Up,
    /// From the host to inside, on a connection from inside.
    Down,
    /// From the host to inside, on a connection to a published port.
    Published,
}

impl Direction {
    pub(super) const ALL: [Self; 3] = [Self::Up, Self::Down, Self::Published];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Published => "published port",
        }
    }
}

/// One run.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Throughput {
    pub(super) contender: Contender,
    pub(super) direction: Direction,
    pub(super) round: usize,
    /// What the receiver counted, in Gbit/s.
    pub(super) gigabits_per_second: f64,
    /// Processor time of all processes of the lab, both iperf3 included, per GiB that the receiver got.
    pub(super) cpu_seconds_per_gibibyte: f64,
    /// What iperf3 says at the end.
    pub(super) iperf3: serde_json::Value,
}

/// Eight seconds after two that do not count, in writes of 128 KiB.
const OPTIONS: [&str; 7] = ["-t", "8", "-O", "2", "-l", "128K", "-J"];

/// `None` when the contender has no such direction.
pub(super) fn measure(
    lab: &Lab,
    contender: Contender,
    direction: Direction,
    round: usize,
) -> Option<Throughput> {
    let published = match direction {
        Direction::Published => Some(contender.publish(lab)?),
        Direction::Up | Direction::Down => None,
    };
    let mut command: Command = match (&published, direction) {
        (Some((_, address, port)), _) => {
            lab.person(&[&["iperf3", "-c", address, "-p", port][..], &OPTIONS].concat())
        }
        (None, Direction::Down) => {
            let client = ["iperf3", "-R", "-c", contender.host_address(), "-p", IPERF];
            contender.command(lab, &[&client[..], &OPTIONS].concat())
        }
        (None, _) => {
            let client = ["iperf3", "-c", contender.host_address(), "-p", IPERF];
            contender.command(lab, &[&client[..], &OPTIONS].concat())
        }
    };
    let before = processor::used();
    let outcome = try_within(Duration::from_secs(40), &mut command);
    let used = processor::used().saturating_sub(before);
    drop(published);
    let measured = outcome.as_ref().ok().and_then(|outcome| parse(&outcome.out, used));
    let Some((gigabits_per_second, cpu_seconds_per_gibibyte, iperf3)) = measured else {
        eprintln!("{} {}: no figure: {outcome:?}", contender.name(), direction.name());
        return None;
    };
    eprintln!(
        "round {round}: {} {}: {gigabits_per_second:.2} Gbit/s, {cpu_seconds_per_gibibyte:.2} s/GiB",
        contender.name(),
        direction.name()
    );
    Some(Throughput {
        contender,
        direction,
        round,
        gigabits_per_second,
        cpu_seconds_per_gibibyte,
        iperf3,
    })
}

/// The receiver's rate, and the time used per GiB; the two seconds that do not count used time as well.
fn parse(report: &str, used: Duration) -> Option<(f64, f64, serde_json::Value)> {
    let mut report: serde_json::Value = serde_json::from_str(report).ok()?;
    let end = report["end"].take();
    let received = &end["sum_received"];
    let bits_per_second = received["bits_per_second"].as_f64()?;
    let counted = received["bytes"].as_f64()?;
    let omitted: f64 = report["intervals"]
        .as_array()?
        .iter()
        .filter(|interval| interval["sum"]["omitted"] == true)
        .filter_map(|interval| interval["sum"]["bytes"].as_f64())
        .sum();
    let gibibytes = (counted + omitted) / f64::from(1 << 30);
    (gibibytes > 0.0).then(|| (bits_per_second / 1e9, used.as_secs_f64() / gibibytes, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_receivers_figure_counts_and_the_omitted_bytes_share_the_time() {
        let report = r#"{"intervals":[{"sum":{"omitted":true,"bytes":1073741824}},
            {"sum":{"omitted":false,"bytes":1073741824}}],
            "end":{"sum_sent":{"bits_per_second":9e9,"bytes":1},
                   "sum_received":{"bits_per_second":8e9,"bytes":1073741824}}}"#;
        let (rate, cost, _) = parse(report, Duration::from_secs(1)).unwrap();
        assert_eq!((rate, cost), (8.0, 0.5));
    }

    #[test]
    fn a_failed_run_gives_no_figure() {
        assert_eq!(parse(r#"{"error":"unable to connect"}"#, Duration::from_secs(1)), None);
    }
}
