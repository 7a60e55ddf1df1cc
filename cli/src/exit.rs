//! How failures are told and which exit code they have, as with Docker: 125 is our own failure in front
//! of a command; its own codes, 126 and 127 included, pass through.

use std::error::Error;
use std::process::ExitCode;

use crate::args::{Command, VmCommand};

/// `lichen run` failed before its command did.
const RUN_FAILED: u8 = 125;

/// The arguments of any other command make no sense.
const MISUSED: u8 = 2;

/// Tells an error with its causes, and answers the exit code.
pub(crate) fn failed(command: &Command, error: &dyn Error) -> ExitCode {
    eprintln!("lichen: {}", chain(error));
    match command {
        Command::Run(_) | Command::Vm(VmCommand::Run(_)) => ExitCode::from(RUN_FAILED),
        _ => ExitCode::FAILURE,
    }
}

/// Tells what is wrong with the arguments, or the help that was asked for. A misused `run` is our own
/// failure in front of a command too.
pub(crate) fn misused(error: &clap::Error) -> ExitCode {
    // A closed standard output is nobody's loss.
    let _ = error.print();
    let words: Vec<String> = std::env::args_os()
        .skip(1)
        .map(|word| word.to_string_lossy().into_owned())
        .take_while(|word| word != "--")
        .collect();
    let is_run = is_run(&words);
    match (error.exit_code(), is_run) {
        (0, _) => ExitCode::SUCCESS,
        (_, true) => ExitCode::from(RUN_FAILED),
        (_, false) => ExitCode::from(MISUSED),
    }
}

/// Whether the command is one that runs another; options of ours may stand in front.
fn is_run(words: &[String]) -> bool {
    let mut commands = words
        .iter()
        .map(String::as_str)
        .filter(|word| !word.starts_with('-') && !matches!(*word, "json" | "table"));
    matches!((commands.next(), commands.next()), (Some("run"), _) | (Some("vm"), Some("run")))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misused_run_is_told_apart_from_other_commands() {
        let is_run = |line: &str| is_run(&line.split(' ').map(str::to_owned).collect::<Vec<_>>());
        for line in ["run --bad", "-o json run --bad", "vm run db --bad", "--output=json vm run"] {
            assert!(is_run(line), "{line}");
        }
        for line in ["rm run", "vm rm run", "ps", "logs run", "vm add run"] {
            assert!(!is_run(line), "{line}");
        }
    }
}
