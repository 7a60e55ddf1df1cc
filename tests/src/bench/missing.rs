//! Why a cell has no figure: a contender that hangs or fails costs its own cell and no other.

use serde::Serialize;

use super::contender::Contender;
use crate::lab::Outcome;

/// A cell without a figure.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Missing {
    pub(super) part: &'static str,
    pub(super) contender: Contender,
    /// Which cell of the part.
    pub(super) what: String,
    pub(super) round: usize,
    pub(super) why: String,
}

/// What `timeout` exits with when it had to end its program.
const TIMED_OUT: i32 = 124;
/// Longest reason; it stands in a cell.
const LONGEST: usize = 60;

/// Why a run came to no figure, as far as it says itself.
pub(super) fn why(outcome: &Result<Outcome, String>) -> String {
    let Ok(outcome) = outcome else { return "hung".to_owned() };
    if matches!(outcome.code, Some(TIMED_OUT | 137) | None) {
        return "did not end in time".to_owned();
    }
    let reported: Option<serde_json::Value> = serde_json::from_str(&outcome.out).ok();
    let reported = reported.as_ref().and_then(|report| report["error"].as_str());
    let said = reported.or_else(|| outcome.err.lines().last()).unwrap_or("no figure");
    said.chars().take(LONGEST).collect()
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use super::*;
    use crate::lab::try_within;

    fn reason(script: &str) -> String {
        why(&try_within(Duration::from_secs(20), Command::new("sh").args(["-c", script])))
    }

    #[test]
    fn a_program_that_was_ended_is_told_from_one_that_failed() {
        assert_eq!(reason("exec timeout 0.05 sleep 10"), "did not end in time");
        assert_eq!(reason("echo '{\"error\":\"unable to connect\"}'; exit 1"), "unable to connect");
        assert_eq!(reason("echo so it is >&2; exit 1"), "so it is");
        assert_eq!(reason("true"), "no figure");
        assert_eq!(why(&Err("not over".to_owned())), "hung");
    }
}
