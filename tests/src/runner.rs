//! Runs scenarios one after the other: they measure time and share two cores.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

use crate::lab::Lab;
use crate::scenarios::all;

/// A scenario is a plain function with a lab of its own; its name is a sentence of behaviour.
#[derive(Clone, Copy)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) run: fn(&Lab),
}

pub(crate) fn run(words: &[&str]) -> ExitCode {
    let (mut passed, mut failed) = (0, Vec::new());
    for Scenario { name, run } in all() {
        if !words.is_empty() && !words.iter().any(|word| name.contains(word)) {
            continue;
        }
        let started = Instant::now();
        let lab = Lab::new();
        let outcome = catch_unwind(AssertUnwindSafe(|| run(&lab)));
        let seconds = started.elapsed().as_secs_f32();
        match outcome {
            Ok(()) => {
                passed += 1;
                println!("ok {name} ({seconds:.1} s)");
            }
            Err(_) => {
                println!("FAILED {name} ({seconds:.1} s)");
                println!("{}", lab.logs());
                failed.push(name);
            }
        }
    }
    for name in &failed {
        println!("FAILED {name}");
    }
    println!("end to end: {passed} passed, {} failed", failed.len());
    if failed.is_empty() && passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Lists functions as scenarios under their own names.
macro_rules! scenarios {
    ($($function:ident),* $(,)?) => {
        pub(super) const SCENARIOS: &[crate::runner::Scenario] = &[
            $(crate::runner::Scenario { name: stringify!($function), run: $function }),*
        ];
    };
}
pub(crate) use scenarios;
