//! How failures are told and which exit code they have, as with Docker: 125 is our own failure in front
//! of a command; its own codes, 126 and 127 included, pass through.

use std::error::Error;
use std::process::ExitCode;

use crate::args::Command;

/// `lichen run` failed before its command did.
const RUN_FAILED: u8 = 125;

/// The arguments of any other command make no sense.
const MISUSED: u8 = 2;

/// Tells an error with its causes, and answers the exit code.
pub(crate) fn failed(command: &Command, error: &dyn Error) -> ExitCode {
    eprintln!("lichen: {}", chain(error));
    match command {
        Command::Run(_) => ExitCode::from(RUN_FAILED),
        _ => ExitCode::FAILURE,
    }
}

/// Tells what is wrong with the arguments, or the help that was asked for. A misused `run` is our own
/// failure in front of a command too.
pub(crate) fn misused(error: &clap::Error) -> ExitCode {
    // A closed standard output is nobody's loss.
    let _ = error.print();
    let is_run = std::env::args_os().nth(1).is_some_and(|first| first == "run");
    match (error.exit_code(), is_run) {
        (0, _) => ExitCode::SUCCESS,
        (_, true) => ExitCode::from(RUN_FAILED),
        (_, false) => ExitCode::from(MISUSED),
    }
}

/// An error with its causes, in one line, each said once.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        let said = source.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = source.source();
    }
    text
}
