//! The speed tables.

use std::process::Command;

use crate::packages;
use crate::step::{self, Failed};
use crate::test;

/// The lab as it measures: its ends of connections must not be what limits.
const LAB: &str = "target/release/lichen-lab";

/// The parts that no lab is needed for, and how cargo runs them.
const WITHOUT_LAB: [(&str, &[&str]); 2] = [
    ("rings", &["--package", "lichen-vhost-net"]),
    ("datapath", &["--package", "lichen-tests", "--features", "criterion", "--bench", "datapath"]),
];

/// `words`: whether the peers are measured too, how many rounds, and which parts if not all.
pub(crate) fn run(words: &[&str]) -> Result<(), Failed> {
    packages::ensure(packages::BENCH)?;
    let is_option = |word: &&str| word.starts_with("--") || word.parse::<usize>().is_ok();
    let (options, parts): (Vec<&str>, Vec<&str>) = words.iter().partition(|word| is_option(word));
    let is_in_lab = |part: &&str| WITHOUT_LAB.iter().all(|(name, _)| name != part);
    let in_lab: Vec<&str> = parts.iter().copied().filter(is_in_lab).collect();
    if parts.is_empty() || !in_lab.is_empty() {
        let both = ["--package", "lichen", "--package", "lichen-tests"];
        step::run(step::cargo(&["build", "--release", "--quiet"]).args(both))?;
        step::run(Command::new(LAB).arg("bench").args(options).args(&in_lab))?;
    }
    for (part, words) in WITHOUT_LAB {
        if parts.is_empty() || parts.contains(&part) {
            step::run(step::cargo(&["bench", "--quiet"]).args(words))?;
        }
    }
    Ok(())
}

/// Counts the instructions of steps of the datapath, for [`crate::test`] to compare with from now on.
pub(crate) fn keep_instructions() -> Result<(), Failed> {
    packages::ensure(packages::INSTRUCTIONS)?;
    test::build_product_and_lab()?;
    step::run(Command::new(test::LAB).args(["instructions", "keep"]))
}
