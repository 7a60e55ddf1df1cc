//! Everything that must pass.

use std::process::Command;

use crate::step::{Failed, Tally, cargo, run, run_tests};
use crate::{check, packages};

/// The end-to-end program, and the product that it tries. What they are made of has been compiled for the tests of the
/// crates: a release would take minutes more, and have fewer assertions. The bench measures that.
pub(crate) const LAB: &str = "target/debug/lichen-lab";
pub(crate) const PRODUCT: &str = "target/debug/lichen";

pub(crate) fn everything() -> Result<(), Failed> {
    packages::ensure(packages::TESTS)?;
    check::all()?;
    let mut tally = Tally::default();
    crates(&mut tally)?;
    build_product_and_lab()?;
    run_tests(Command::new(LAB).arg("instructions"), &mut tally)?;
    run_tests(Command::new(LAB).arg("test"), &mut tally)?;
    close(tally)
}

/// All but what is end to end: for the minutes between two edits.
pub(crate) fn quick() -> Result<(), Failed> {
    packages::ensure(packages::TESTS)?;
    check::all()?;
    let mut tally = Tally::default();
    crates(&mut tally)?;
    close(tally)
}

/// The end-to-end scenarios whose name contains one of the words.
pub(crate) fn scenarios(names: &[&str]) -> Result<(), Failed> {
    packages::ensure(packages::TESTS)?;
    build_product_and_lab()?;
    let mut tally = Tally::default();
    run_tests(Command::new(LAB).arg("test").args(names), &mut tally)?;
    close(tally)
}

pub(crate) fn build_product_and_lab() -> Result<(), Failed> {
    let both = ["--package", "lichen", "--package", "lichen-tests"];
    run(cargo(&["build", "--quiet"]).args(both))
}

fn crates(tally: &mut Tally) -> Result<(), Failed> {
    run_tests(&mut cargo(&["test", "--workspace", "--quiet", "--no-fail-fast"]), tally)?;
    // What guests see must not depend on how many workers there are.
    for workers in ["2", "4"] {
        let words = ["test", "--quiet", "--no-fail-fast", "--package", "lichen-netstack"];
        run_tests(cargo(&words).env("LICHEN_LAB_WORKERS", workers), tally)?;
    }
    Ok(())
}

fn close(tally: Tally) -> Result<(), Failed> {
    let Tally { passed, failed } = tally;
    println!("{passed} passed, {failed} failed");
    match (passed, failed) {
        (0, _) => Err(Failed::new("no test ran")),
        (_, 0) => Ok(()),
        _ => Err(Failed::new("some tests failed")),
    }
}
