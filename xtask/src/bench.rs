//! The speed tables.

use std::process::Command;

use crate::packages;
use crate::step::{self, Failed};
use crate::test::{LAB, build_release};

pub(crate) fn run(rounds: &[&str]) -> Result<(), Failed> {
    packages::ensure(packages::BENCH)?;
    build_release()?;
    step::run(Command::new(LAB).arg("bench").args(rounds))
}
