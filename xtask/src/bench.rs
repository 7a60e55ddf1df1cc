//! The speed tables.

use std::process::Command;

use crate::packages;
use crate::step::{self, Failed};

/// The lab as it measures: its ends of connections must not be what limits.
const LAB: &str = "target/release/lichen-lab";

/// The part that no lab is needed for.
const RINGS: &str = "rings";

/// `words`: how many rounds, and which parts if not all.
pub(crate) fn run(words: &[&str]) -> Result<(), Failed> {
    packages::ensure(packages::BENCH)?;
    let (rounds, parts): (Vec<&str>, Vec<&str>) =
        words.iter().partition(|word| word.parse::<usize>().is_ok());
    let in_lab: Vec<&str> = parts.iter().copied().filter(|part| *part != RINGS).collect();
    if parts.is_empty() || !in_lab.is_empty() {
        let both = ["--package", "lichen", "--package", "lichen-tests"];
        step::run(step::cargo(&["build", "--release", "--quiet"]).args(both))?;
        step::run(Command::new(LAB).arg("bench").args(rounds).args(&in_lab))?;
    }
    if parts.is_empty() || parts.contains(&RINGS) {
        step::run(&mut step::cargo(&["bench", "--quiet", "--package", "lichen-vhost-net"]))?;
    }
    Ok(())
}
