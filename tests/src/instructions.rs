//! Instructions that steps of the datapath take, held against those that are kept: a regression shows, however busy
//! the machine is.
//!
//! valgrind's cachegrind counts, in this program as it is built for the end-to-end tests. Each step is run in two
//! processes, in one of them twice as often, and the difference is divided by how often: what comes before the steps
//! falls out. Hash tables and allocators remain, whose seeds and growth make a count differ by up to two in a hundred from
//! run to run, and code elsewhere that changes what is inlined: hence the tolerance. The standard library's copies
//! are told to be the same on every processor.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use lichen_netstack::testing::steps::{self, Kind};
use serde::{Deserialize, Serialize};

/// In the repository that this is run in.
const KEPT: &str = "docs/performance/instructions.json";
const UPDATE: &str = "./x bench instructions";
/// Steps of the shorter run.
const STEPS: u64 = 500;
/// How far a count may be above the kept one, in percent.
const TOLERANCE: f64 = 3.0;
/// For glibc, whose `memcpy` otherwise depends on the processor.
const TUNABLES: &str = "glibc.cpu.hwcaps=-AVX2,-AVX512F,-AVX512VL,-ERMS,-FSRM";

/// All steps.
fn kinds() -> Vec<Kind> {
    [&steps::KINDS[..], &lichen_vhost_net::testing::steps::KINDS].concat()
}

/// Counts, and what made them.
#[derive(Debug, Deserialize, Serialize)]
struct Counts {
    compiler: String,
    valgrind: String,
    /// Of one step of each kind.
    instructions: BTreeMap<String, u64>,
}

/// `words`: `keep` writes the counts of now; `take KIND STEPS` is what valgrind runs; else they are compared.
pub(crate) fn run(words: &[&str]) -> ExitCode {
    let done = match words {
        [] => compare(),
        ["keep"] => keep(),
        ["take", kind, steps] => take(kind, steps),
        _ => Err("usage: lichen-lab instructions [keep]".to_owned()),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("instructions: {why}");
            ExitCode::FAILURE
        }
    }
}

fn compare() -> Result<bool, String> {
    let text = fs::read_to_string(KEPT).map_err(|error| format!("{KEPT}: {error}; {UPDATE}"))?;
    let kept: Counts =
        serde_json::from_str(&text).map_err(|error| format!("{KEPT}: {error}; {UPDATE}"))?;
    let now = Counts::take()?;
    let mut failed = 0;
    for (kind, counted) in &now.instructions {
        let verdict = Verdict::of(*counted, kept.instructions.get(kind).copied());
        failed += usize::from(verdict.is_failure());
        println!("{verdict} {kind}: {counted} instructions");
    }
    for gone in kept.instructions.keys().filter(|kind| !now.instructions.contains_key(*kind)) {
        failed += 1;
        println!("FAILED {gone}: kept, but no step any more");
    }
    if failed > 0 {
        for (kept, now) in [(&kept.compiler, &now.compiler), (&kept.valgrind, &now.valgrind)] {
            if kept != now {
                println!("The counts that are kept are of {kept}, those of now of {now}.");
            }
        }
        println!("Where a change is worth what it costs, keep the new counts: {UPDATE}");
    }
    println!(
        "instructions: {} passed, {failed} failed",
        now.instructions.len() - failed.min(now.instructions.len())
    );
    Ok(failed == 0)
}

fn keep() -> Result<bool, String> {
    let counts = Counts::take()?;
    let text = serde_json::to_string_pretty(&counts).expect("names and numbers") + "\n";
    print!("{text}");
    fs::write(Path::new(KEPT), text).map_err(|error| format!("{KEPT}: {error}"))?;
    Ok(true)
}

fn take(kind: &str, steps: &str) -> Result<bool, String> {
    let prepare =
        kinds().into_iter().find(|it| it.name == kind).ok_or("no such kind of step")?.prepare;
    let steps: u64 = steps.parse().map_err(|_| "no number of steps")?;
    let mut step = prepare();
    (0..steps).for_each(|_| step());
    Ok(true)
}

/// What a count is beside the kept one.
#[derive(Debug, PartialEq)]
enum Verdict {
    Same {
        percent: f64,
    },
    /// Not a failure, but whoever comes next could lose it again unseen.
    Fell {
        percent: f64,
    },
    Grew {
        percent: f64,
        from: u64,
    },
    New,
}

impl Verdict {
    fn of(counted: u64, kept: Option<u64>) -> Self {
        let Some(kept) = kept.filter(|kept| *kept > 0) else { return Self::New };
        let percent = 100.0 * (counted as f64 / kept as f64 - 1.0);
        if percent > TOLERANCE {
            Self::Grew { percent, from: kept }
        } else if percent < -TOLERANCE {
            Self::Fell { percent }
        } else {
            Self::Same { percent }
        }
    }

    fn is_failure(&self) -> bool {
        matches!(self, Self::Grew { .. } | Self::New)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Same { percent } => write!(f, "ok ({percent:+.1} %)"),
            Self::Fell { percent } => write!(f, "ok (fell: {percent:+.1} %; keep it: {UPDATE})"),
            Self::Grew { percent, from } => write!(f, "FAILED (grew from {from}: {percent:+.1} %)"),
            Self::New => write!(f, "FAILED (no count is kept)"),
        }
    }
}

impl Counts {
    /// Counts all steps, with as many processes at once as there are processors.
    fn take() -> Result<Self, String> {
        let kinds = kinds();
        let (next, counted) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        let count = || {
            while let Some(kind) = kinds.get(next.fetch_add(1, Ordering::Relaxed)) {
                let count = instructions_of(kind.name);
                counted.lock().expect("nobody panics").push((kind.name, count));
            }
        };
        thread::scope(|scope| {
            for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
                scope.spawn(count);
            }
        });
        let counted = counted.into_inner().expect("nobody panics").into_iter();
        let counted = counted.map(|(kind, count)| Ok((kind.to_owned(), count?)));
        Ok(Self {
            compiler: version("rustc")?,
            valgrind: version("valgrind")?,
            instructions: counted.collect::<Result<_, String>>()?,
        })
    }
}

/// Instructions of one step.
fn instructions_of(kind: &str) -> Result<u64, String> {
    let (once, twice) = (references(kind, STEPS)?, references(kind, 2 * STEPS)?);
    Ok(twice.saturating_sub(once) / STEPS)
}

/// Instructions of a process that takes so many steps.
fn references(kind: &str, steps: u64) -> Result<u64, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let output = Command::new("valgrind")
        .args(["--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"])
        .arg(program)
        .args(["instructions", "take", kind, &steps.to_string()])
        .env("GLIBC_TUNABLES", TUNABLES)
        .output()
        .map_err(|error| format!("valgrind: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        return Err(format!("{kind}: valgrind: {}\n{said}", output.status));
    }
    total(&said).ok_or_else(|| format!("{kind}: no count in what valgrind says:\n{said}"))
}

/// The number of `==1== I   refs:      1,234`.
fn total(said: &str) -> Option<u64> {
    let (_, number) = said.lines().find_map(|line| line.split_once("refs:"))?;
    number.replace([',', ' '], "").parse().ok()
}

fn version(program: &str) -> Result<String, String> {
    let output = Command::new(program).arg("--version").output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_may_be_a_little_higher_and_much_lower() {
        assert!(!Verdict::of(1029, Some(1000)).is_failure());
        assert!(!Verdict::of(500, Some(1000)).is_failure());
        assert!(Verdict::of(1031, Some(1000)).is_failure());
        assert!(Verdict::of(1000, None).is_failure());
        let said = Verdict::of(1100, Some(1000)).to_string();
        assert_eq!(said, "FAILED (grew from 1000: +10.0 %)");
    }

    #[test]
    fn the_total_is_read_from_what_cachegrind_says() {
        assert_eq!(total("==7== Command: x\n==7== I   refs:      1,234,567\n"), Some(1_234_567));
        assert_eq!(total("==7== no such number"), None);
    }
}
