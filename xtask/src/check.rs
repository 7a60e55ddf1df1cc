//! Format, lints, documentation.

use crate::documents;
use crate::packages;
use crate::step::{Failed, cargo, run};

pub(crate) fn all() -> Result<(), Failed> {
    packages::ensure(packages::LINTS)?;
    documents::tests_exist()?;
    run(&mut cargo(&["fmt", "--all", "--check"]))?;
    let lints = ["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"];
    run(&mut cargo(&lints))?;
    run(cargo(&["doc", "--workspace", "--no-deps", "--quiet"]).env("RUSTDOCFLAGS", "-D warnings"))
}
