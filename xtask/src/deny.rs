//! Licenses and sources of the dependencies.

use std::path::PathBuf;
use std::process::Command;

use crate::step::{self, Failed, cargo};

/// Pinned, so that the same tree is judged the same on every machine.
const VERSION: &str = "0.20.2";

/// Installs cargo-deny where it is missing, outside `target`, which may be cleaned: it takes minutes.
pub(crate) fn run() -> Result<(), Failed> {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .ok_or_else(|| Failed::new("HOME is not set"))?;
    let root = cache.join("lichen-ci").join(format!("cargo-deny-{VERSION}"));
    let program = root.join("bin/cargo-deny");
    if !program.exists() {
        let install = ["install", "--locked", "--version", VERSION, "--quiet", "--root"];
        step::run(cargo(&install).arg(&root).arg("cargo-deny"))?;
    }
    step::run(Command::new(program).args(["check", "bans", "licenses", "sources"]))
}
