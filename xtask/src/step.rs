//! Running programs as steps that a person can follow.

use std::fmt;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::time::Instant;

/// When the first step began: each tells how long it has been.
static STARTED: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Why a command of the repository ended; a sentence for a person.
#[derive(Debug)]
pub(crate) struct Failed(String);

impl Failed {
    pub(crate) fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How many tests passed and failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
}

impl Tally {
    /// What a line of a test program's output adds: `… 12 passed; 0 failed …` or `12 passed, 0 failed`.
    fn count(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number_before = |word: &str| {
            let at =
                words.iter().position(|other| other.trim_end_matches([',', ';', '.']) == word)?;
            words.get(at.checked_sub(1)?)?.parse::<u64>().ok()
        };
        if let (Some(passed), Some(failed)) = (number_before("passed"), number_before("failed")) {
            self.passed += passed;
            self.failed += failed;
        }
    }
}

/// `cargo` with these arguments.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    // The one that runs us, which need not be the first in PATH.
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments);
    command
}

/// Runs a program to a successful end.
pub(crate) fn run(command: &mut Command) -> Result<(), Failed> {
    let text = announce(command);
    let status = command.status().map_err(|error| Failed::new(format!("{text}: {error}")))?;
    if status.success() { Ok(()) } else { Err(Failed::new(format!("failed: {text} ({status})"))) }
}

/// Runs test programs, showing and counting what they say. Their failure is in the tally; a program
/// that fails without having counted a failed test counts as one.
pub(crate) fn run_tests(command: &mut Command, tally: &mut Tally) -> Result<(), Failed> {
    let text = announce(command);
    let failed = |error| Failed::new(format!("{text}: {error}"));
    let mut child = command.stdout(Stdio::piped()).spawn().map_err(failed)?;
    let output = child.stdout.take().expect("it was asked for");
    let failed_before = tally.failed;
    for line in BufReader::new(output).lines() {
        let line = line.map_err(failed)?;
        println!("{line}");
        tally.count(&line);
    }
    let status = child.wait().map_err(failed)?;
    if !status.success() && tally.failed == failed_before {
        eprintln!("failed: {text} ({status})");
        tally.failed += 1;
    }
    Ok(())
}

fn announce(command: &Command) -> String {
    let program = command.get_program().to_string_lossy();
    let name = program.rsplit('/').next().unwrap_or_default().to_owned();
    let words = command.get_args().map(|word| word.to_string_lossy().into_owned());
    let text = std::iter::once(name).chain(words).collect::<Vec<_>>().join(" ");
    let seconds = STARTED.elapsed().as_secs();
    eprintln!("== {:02}:{:02} {text}", seconds / 60, seconds % 60);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_summary_are_counted_and_nothing_else() {
        let mut tally = Tally::default();
        for line in [
            "test result: ok. 23 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out",
            "namespaces: 36 passed, 2 failed",
            "ok a_name_that_failed",
            "passed failed",
        ] {
            tally.count(line);
        }
        assert_eq!(tally, Tally { passed: 59, failed: 3 });
    }
}
