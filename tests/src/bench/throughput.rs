//! TCP streams for eight seconds: one, four at once, and one over a bad link.

use std::process::Command;
use std::time::Duration;

use lichen_netstack::testing::impair::Impairment;
use lichen_netstack::testing::shaper::Shaping;
use serde::Serialize;

use super::contender::{Contender, Family, IPERF, IPERF6, PATIENCE, Server};
use super::missing::why;
use super::processor;
use crate::lab::address::FAR;
use crate::lab::{Background, Direction as Way, Lab, ShapedLink, try_within};

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

/// What is sent, and over what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    /// One stream between inside and the host.
    OneStream,
    /// The same by IPv6.
    OneStream6,
    /// Four at once.
    FourStreams,
    /// One between inside and the host's upstream, over a link that loses one frame in a hundred each way
    /// and takes 20 ms there and back.
    BadLink,
}

impl Kind {
    /// The part of the bench that it is.
    pub(super) fn part(self) -> &'static str {
        match self {
            Self::OneStream => "throughput",
            Self::OneStream6 => "ipv6",
            Self::FourStreams => "streams",
            Self::BadLink => "loss",
        }
    }

    /// The ways that are measured.
    pub(super) fn directions(self) -> &'static [Direction] {
        match self {
            Self::OneStream => &Direction::ALL,
            Self::OneStream6 | Self::FourStreams | Self::BadLink => {
                &[Direction::Up, Direction::Down]
            }
        }
    }

    fn family(self) -> Family {
        if self == Self::OneStream6 { Family::V6 } else { Family::V4 }
    }
}

/// One run.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Throughput {
    pub(super) kind: Kind,
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

/// Where the server of the bad link's other end listens.
const FAR_IPERF: &str = "5205";

/// An error says why there is no figure.
pub(super) fn measure(
    lab: &Lab,
    kind: Kind,
    contender: Contender,
    direction: Direction,
    round: usize,
) -> Result<Throughput, String> {
    let mut options = OPTIONS.to_vec();
    if kind == Kind::FourStreams {
        options.extend(["-P", "4"]);
    }
    if direction == Direction::Down {
        options.push("-R");
    }
    let published = match direction {
        Direction::Published => Some(contender.publish(lab, Server::Iperf)?),
        Direction::Up | Direction::Down => None,
    };
    let bad_link = (kind == Kind::BadLink).then(|| bad_link(lab));
    let (address, port) = match (&published, kind) {
        (Some(published), _) => (published.address, published.port.as_str()),
        (None, Kind::BadLink) => (FAR, FAR_IPERF),
        (None, Kind::OneStream6) => (contender.host_address6(), IPERF6),
        (None, _) => (contender.host_address(), IPERF),
    };
    let family = if kind.family() == Family::V6 { "-6" } else { "-4" };
    let client = [&["iperf3", family, "-c", address, "-p", port][..], &options].concat();
    let mut command: Command = match published {
        Some(_) => lab.person(&client),
        None => contender.command_with(lab, kind.family(), &client),
    };
    let before = processor::used();
    let outcome = try_within(Duration::from_secs(PATIENCE + 10), &mut command);
    let used = processor::used().saturating_sub(before);
    drop((published, bad_link));
    let measured = outcome.as_ref().ok().and_then(|outcome| parse(&outcome.out, used));
    let (gigabits_per_second, cpu_seconds_per_gibibyte, iperf3) =
        measured.ok_or_else(|| why(&outcome))?;
    eprintln!(
        "round {round}: {}: {} {}: {gigabits_per_second:.3} Gbit/s, {cpu_seconds_per_gibibyte:.2} s/GiB",
        kind.part(),
        contender.name(),
        direction.name()
    );
    Ok(Throughput {
        kind,
        contender,
        direction,
        round,
        gigabits_per_second,
        cpu_seconds_per_gibibyte,
        iperf3,
    })
}

/// The same link for everybody, begun anew, with a server at its other end.
fn bad_link(lab: &Lab) -> (ShapedLink, Background) {
    let impairment = Impairment { loss: 1, ..Impairment::default() };
    let delay = Duration::from_millis(10);
    let shaping = Shaping { impairment, delay, ..Shaping::default() };
    let link = lab.shape(Way { shaping, seed: 1 }, Way { shaping, seed: 2 });
    let server = lab.upstream().start_in_background(&["iperf3", "-s", "-p", FAR_IPERF]);
    lab.upstream()
        .sh(&format!("until busybox netstat -ltn | grep -q :{FAR_IPERF}; do sleep 0.05; done"));
    (link, server)
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
