//! As many UDP datagrams as go through, of one size.

use std::time::Duration;

use serde::Serialize;

use super::contender::{Contender, IPERF, PATIENCE};
use super::missing::why;
use super::throughput::Direction;
use crate::lab::{Lab, try_within};

/// Sizes of what is sent.
pub(super) const SIZES: [&str; 2] = ["64", "1472"];
/// Which ways are measured.
pub(super) const DIRECTIONS: [Direction; 2] = [Direction::Up, Direction::Down];

/// One run.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Datagrams {
    pub(super) contender: Contender,
    pub(super) direction: Direction,
    /// Bytes of each.
    pub(super) size: &'static str,
    pub(super) round: usize,
    /// What the receiver counted, in thousands a second.
    pub(super) thousands_per_second: f64,
    /// Of what was sent, in percent.
    pub(super) lost: f64,
    /// What iperf3 says at the end.
    pub(super) iperf3: serde_json::Value,
}

/// An error says why there is no figure.
pub(super) fn measure(
    lab: &Lab,
    contender: Contender,
    direction: Direction,
    size: &'static str,
    round: usize,
) -> Result<Datagrams, String> {
    let client = ["iperf3", "-c", contender.host_address(), "-p", IPERF];
    let options = ["-u", "-b", "0", "-l", size, "-t", "4", "-J"];
    let back: &[&str] = if direction == Direction::Down { &["-R"] } else { &[] };
    let mut command = contender.command(lab, &[&client[..], &options, back].concat());
    let outcome = try_within(Duration::from_secs(PATIENCE + 10), &mut command);
    let (thousands_per_second, lost, iperf3) =
        outcome.as_ref().ok().and_then(|it| parse(&it.out)).ok_or_else(|| why(&outcome))?;
    eprintln!(
        "round {round}: {} {}, {size} B: {thousands_per_second:.0} kpps, {lost:.1} % lost",
        contender.name(),
        direction.name()
    );
    Ok(Datagrams { contender, direction, size, round, thousands_per_second, lost, iperf3 })
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
    fn what_was_lost_does_not_count() {
        let report = r#"{"end":{"sum":{"packets":10000,"lost_packets":2500,"seconds":2.5}}}"#;
        let (rate, lost, _) = parse(report).unwrap();
        assert_eq!((rate, lost), (3.0, 25.0));
        assert!(parse(r#"{"error":"unable to connect"}"#).is_none());
    }
}
