//! As many UDP datagrams as go through, of one size.

use std::time::Duration;

use serde::Serialize;

use super::contender::{Contender, HEAR, IPERF, PATIENCE};
use super::missing::why;
use super::throughput::Direction;
use crate::lab::{Lab, try_within};

/// Sizes of what is sent.
const SIZES: [&str; 2] = ["64", "1472"];
/// Which ways are measured.
const DIRECTIONS: [Direction; 2] = [Direction::Up, Direction::Down];

/// For how long.
const SECONDS: &str = "4";

/// What sends and what receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Ends {
    /// A call of the kernel for each datagram, and more work besides than the way takes.
    Iperf3,
    /// Many datagrams to one call: the way is most of what is measured.
    Bursts,
}

impl Ends {
    pub(super) const ALL: [Self; 2] = [Self::Iperf3, Self::Bursts];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Iperf3 => "iperf3",
            Self::Bursts => "bursts",
        }
    }
}

/// Which kind of run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Kind {
    pub(super) ends: Ends,
    /// Bytes of each datagram.
    pub(super) size: &'static str,
    pub(super) direction: Direction,
}

impl Kind {
    /// Those with the same ends.
    pub(super) fn all(ends: Ends) -> impl Iterator<Item = Self> {
        let of = move |size| DIRECTIONS.map(move |direction| Self { ends, size, direction });
        SIZES.into_iter().flat_map(of)
    }

    pub(super) fn name(self) -> String {
        format!("{} B {}", self.size, self.direction.name())
    }

    /// The same, when those with other ends are meant too.
    pub(super) fn full_name(self) -> String {
        format!("{}, {}", self.name(), self.ends.name())
    }
}

/// One run.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Datagrams {
    pub(super) contender: Contender,
    #[serde(flatten)]
    pub(super) kind: Kind,
    pub(super) round: usize,
    /// What the receiver counted, in thousands a second.
    pub(super) thousands_per_second: f64,
    /// Of what was sent, in percent.
    pub(super) lost: f64,
    /// What iperf3 says at the end.
    pub(super) iperf3: Option<serde_json::Value>,
}

/// An error says why there is no figure.
pub(super) fn measure(
    lab: &Lab,
    contender: Contender,
    kind: Kind,
    round: usize,
) -> Result<Datagrams, String> {
    let mut command = match kind.ends {
        Ends::Iperf3 => {
            let client = ["iperf3", "-c", contender.host_address(), "-p", IPERF];
            let options = ["-u", "-b", "0", "-l", kind.size, "-t", SECONDS, "-J"];
            let back: &[&str] = if kind.direction == Direction::Down { &["-R"] } else { &[] };
            contender.command(lab, &[&client[..], &options, back].concat())
        }
        Ends::Bursts => {
            let program = lab.path("bin/lichen-lab").display().to_string();
            let address = format!("{}:{HEAR}", contender.host_address());
            let way = if kind.direction == Direction::Down { "down" } else { "up" };
            let flood = [&program, "peer", "flood", way, &address, kind.size, SECONDS];
            contender.command(lab, &flood)
        }
    };
    let outcome = try_within(Duration::from_secs(PATIENCE + 10), &mut command);
    let printed = outcome.as_ref().map_or("", |outcome| &outcome.out);
    let figures = match kind.ends {
        Ends::Iperf3 => parse(printed).map(|(rate, lost, end)| (rate, lost, Some(end))),
        Ends::Bursts => parse_flood(printed).map(|(rate, lost)| (rate, lost, None)),
    };
    let (thousands_per_second, lost, iperf3) = figures.ok_or_else(|| why(&outcome))?;
    eprintln!(
        "round {round}: {} {}: {thousands_per_second:.0} kpps, {lost:.1} % lost",
        contender.name(),
        kind.full_name()
    );
    Ok(Datagrams { contender, kind, round, thousands_per_second, lost, iperf3 })
}

/// Datagrams a second, and percent.
fn parse_flood(printed: &str) -> Option<(f64, f64)> {
    let (rate, lost) = printed.trim().split_once(' ')?;
    Some((rate.parse::<f64>().ok()? / 1000.0, lost.parse().ok()?))
}

fn parse(report: &str) -> Option<(f64, f64, serde_json::Value)> {
    let mut report: serde_json::Value = serde_json::from_str(report).ok()?;
    let end = report["end"].take();
    let sum = &end["sum"];
    let (sent, lost) = (sum["packets"].as_f64()?, sum["lost_packets"].as_f64()?);
    let seconds = sum["seconds"].as_f64().filter(|seconds| *seconds > 0.0)?;
    let received = (sent - lost).max(0.0);
    let share = if sent > 0.0 { 100.0 * lost / sent } else { 0.0 };
    Some((received / seconds / 1000.0, share, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_told_in_thousands() {
        assert_eq!(parse_flood("123456.0 12.5\n"), Some((123.456, 12.5)));
        assert_eq!(parse_flood("Connection refused"), None);
    }

    #[test]
    fn what_was_lost_does_not_count() {
        let report = r#"{"end":{"sum":{"packets":10000,"lost_packets":2500,"seconds":2.5}}}"#;
        let (rate, lost, _) = parse(report).unwrap();
        assert_eq!((rate, lost), (3.0, 25.0));
        assert!(parse(r#"{"error":"unable to connect"}"#).is_none());
    }
}
