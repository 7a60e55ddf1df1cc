//! The link between host and upstream, made a bad one: loss, repetition, reordering, delay, rate.
//!
//! A process outside of both machines carries the frames (`peer/shape.rs`), so no kernel needs netem.

use std::process::Command;

use lichen_netstack::testing::shaper::Shaping;

use super::machine::Background;
use super::outcome::{comes_true, eventually};
use super::{Lab, services};
use crate::peer::direction;

/// How frames fare in one direction, and the seed of its chance.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Direction {
    pub(crate) shaping: Shaping,
    pub(crate) seed: u64,
}

/// A link that lasts until it is dropped.
pub(crate) struct ShapedLink {
    process: Background,
}

/// What happened in one direction so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) frames: u64,
    pub(crate) lost: u64,
    pub(crate) duplicated: u64,
    pub(crate) reordered: u64,
    pub(crate) overflowed: u64,
}

impl ShapedLink {
    #[track_caller]
    pub(super) fn start(lab: &Lab, forth: Direction, back: Direction) -> Self {
        // A link of before, of either kind, goes first.
        lab.host.sh("ip link del uplink 2>/dev/null || true");
        let [near, far] = [&lab.host, &lab.upstream].map(|machine| machine.init().to_string());
        let directions = [forth, back].map(|it| direction(&it.shaping, it.seed));
        let mut command = Command::new("setpriv");
        // Outside of the machines' PID namespaces, where their pids mean something.
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(lab.path("bin/lichen-lab"))
            .args(["peer", "shape", &near, "uplink", &far, "downlink"])
            .args(directions);
        let process = Background::start(&mut command, &lab.path("logs"));
        let there = comes_true(|| process.printed().contains("ready"));
        assert!(there, "no shaped link: {}", process.printed());
        // A burst waits in the tap as it would in a veth, else it is cut short beside the seed's choices.
        lab.host.sh("ip link set uplink txqueuelen 10000");
        lab.upstream.sh("ip link set downlink txqueuelen 10000");
        services::give_addresses(&lab.host, &lab.upstream);
        Self { process }
    }

    /// What happened from the host and to it, once nothing is on its way and so many frames have come in each.
    #[track_caller]
    pub(crate) fn counts_of(&self, frames: u64) -> [Counts; 2] {
        let mut last = None;
        eventually("enough frames have gone over the shaped link", || {
            last = self.process.printed().lines().last().and_then(parse);
            last.is_some_and(|counts| counts.iter().all(|counts| counts.frames >= frames))
        });
        last.expect("just seen")
    }
}

fn parse(line: &str) -> Option<[Counts; 2]> {
    let mut directions = line.split(' ').map(|direction| {
        let counts: Vec<u64> = direction.split('/').map_while(|word| word.parse().ok()).collect();
        let [frames, lost, duplicated, reordered, overflowed] = counts[..] else { return None };
        Some(Counts { frames, lost, duplicated, reordered, overflowed })
    });
    Some([directions.next()??, directions.next()??])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_read_and_nothing_else_taken_for_one() {
        let [forth, back] = parse("10/1/2/3/0 4/0/0/0/5").unwrap();
        assert_eq!((forth.frames, forth.lost, forth.duplicated, forth.reordered), (10, 1, 2, 3));
        assert_eq!((back.frames, back.overflowed), (4, 5));
        assert_eq!(parse("ready"), None);
        assert_eq!(parse("1/2/3/4/5"), None);
    }
}
