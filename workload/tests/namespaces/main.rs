//! Namespaces, supervisor and netns helper for real, as an unprivileged user.
//!
//! This program plays four parts: the roles `supervise` and `netns-helper` as the product does, a small
//! `run` that stands for the CLI, and the list of scenarios. Started as root it goes on as uid 1000.

mod as_user;
mod caller;
mod fixture;
mod launching;
mod tapping;
mod terminals;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

/// Its name, a sentence of behaviour, and itself.
type Scenario = (&'static str, fn());

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("supervise") => lichen_workload::supervise_main(),
        Some("netns-helper") => lichen_workload::netns_helper_main(),
        Some("run") => caller::run(&arguments[1]),
        Some("tap") => caller::tap(&arguments[1]),
        _ if rustix::process::geteuid().is_root() => as_user::go_on(&arguments),
        _ => run_scenarios(&arguments),
    }
}

/// Runs the scenarios whose name contains one of the words, or all; serially, since they measure time.
fn run_scenarios(arguments: &[String]) -> ExitCode {
    let words: Vec<&String> = arguments.iter().filter(|word| !word.starts_with('-')).collect();
    let (mut passed, mut failed) = (0, 0);
    let all = [launching::SCENARIOS, terminals::SCENARIOS, tapping::SCENARIOS].concat();
    for (name, scenario) in all {
        if !words.is_empty() && !words.iter().any(|word| name.contains(word.as_str())) {
            continue;
        }
        match catch_unwind(AssertUnwindSafe(scenario)) {
            Ok(()) => passed += 1,
            Err(_) => {
                failed += 1;
                println!("FAILED {name}");
                continue;
            }
        }
        println!("ok {name}");
    }
    println!("namespaces: {passed} passed, {failed} failed");
    if failed == 0 && passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Lists functions as scenarios under their own names.
macro_rules! scenarios {
    ($($function:ident),* $(,)?) => {
        pub(crate) const SCENARIOS: &[crate::Scenario] = &[$((stringify!($function), $function)),*];
    };
}
pub(crate) use scenarios;
