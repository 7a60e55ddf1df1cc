//! Connections a second: each is made, carries a byte there and one back, and is closed.

use std::time::Duration;

use serde::Serialize;

use super::contender::{Contender, GREET, PATIENCE, Server};
use super::missing::why;
use super::throughput::Direction;
use crate::lab::{Lab, try_within};

/// How many there are at once.
pub(super) const AT_ONCE: [usize; 2] = [1, 64];
/// From inside to the host, and from the host to a published port.
pub(super) const DIRECTIONS: [Direction; 2] = [Direction::Up, Direction::Published];
/// A run is over after so many connections or seconds, so that no side runs out of ports (TIME-WAIT).
const MOST: &str = "8000";
const SECONDS: &str = "4";

/// One run.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Connections {
    pub(super) contender: Contender,
    pub(super) direction: Direction,
    pub(super) at_once: usize,
    pub(super) round: usize,
    pub(super) per_second: f64,
    /// Those that came to nothing.
    pub(super) failed: u64,
}

/// An error says why there is no figure.
pub(super) fn measure(
    lab: &Lab,
    contender: Contender,
    direction: Direction,
    at_once: usize,
    round: usize,
) -> Result<Connections, String> {
    let program = lab.path("bin/lichen-lab").display().to_string();
    let count = at_once.to_string();
    let greeting =
        |to: &str| [&program, "peer", "connections", to, &count, MOST, SECONDS].map(str::to_owned);
    // The loopback has no published port: its server is as near from either side.
    let published = match (direction, contender) {
        (Direction::Published, Contender::Loopback) => None,
        (Direction::Published, _) => Some(contender.publish(lab, Server::Greeter)?),
        _ => None,
    };
    let mut command = match &published {
        Some(published) => {
            let words = greeting(&format!("{}:{}", published.address, published.port));
            lab.person(&words.each_ref().map(String::as_str))
        }
        None => {
            let words = greeting(&format!("{}:{GREET}", contender.host_address()));
            contender.command(lab, &words.each_ref().map(String::as_str))
        }
    };
    let outcome = try_within(Duration::from_secs(PATIENCE + 10), &mut command);
    drop(published);
    let printed = outcome.as_ref().map_or("", |outcome| &outcome.out);
    let figures: Vec<f64> =
        printed.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [per_second, failed] = figures[..] else { return Err(why(&outcome)) };
    if per_second == 0.0 {
        return Err(format!("none of {failed:.0} was answered"));
    }
    eprintln!(
        "round {round}: {} {}, {at_once} at once: {per_second:.0} connections a second, {failed:.0} failed",
        contender.name(),
        direction.name()
    );
    let failed = failed as u64;
    Ok(Connections { contender, direction, at_once, round, per_second, failed })
}
