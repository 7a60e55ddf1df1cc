//! `lichen completions`: what a shell needs to complete our words.

use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::Arguments;

/// Prints a completion script.
pub(crate) fn completions(shell: Shell) -> ExitCode {
    clap_complete::generate(shell, &mut Arguments::command(), "lichen", &mut std::io::stdout());
    ExitCode::SUCCESS
}
