//! Everything that must pass.

use std::fs;
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
    let all = ["test", "--workspace", "--quiet", "--no-fail-fast"];
    run_tests(&mut cargo(&all), tally)?;
    // What guests see must not depend on how many workers there are. Picked from the whole workspace, as the crate by
    // itself would be compiled anew, with fewer features of what it depends on.
    let of_the_lab = targets("netstack/tests")?;
    let picked: Vec<&str> = of_the_lab.iter().flat_map(|name| ["--test", name]).collect();
    for workers in ["2", "4"] {
        run_tests(cargo(&all).args(&picked).env("LICHEN_LAB_WORKERS", workers), tally)?;
    }
    Ok(())
}

/// The names of the test programs in a folder: each a file or a folder.
fn targets(folder: &str) -> Result<Vec<String>, Failed> {
    let failed = |error| Failed::new(format!("{folder}: {error}"));
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        names.extend(path.file_stem().and_then(|name| name.to_str()).map(str::to_owned));
    }
    names.sort_unstable();
    Ok(names)
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
