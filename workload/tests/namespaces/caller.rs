//! What the CLI and the daemon do with this crate, in a few lines: a scenario starts it as a process of
//! its own, since a workload inherits descriptors, directory and terminal.

use std::fs;
use std::process::ExitCode;

use lichen_workload::{LaunchError, LaunchSpec, TapRequest, launch, open_tap};

/// Runs the command of a specification and exits as it does, or with the text of the error on stderr.
pub(crate) fn run(spec: &str) -> ExitCode {
    let spec: LaunchSpec = serde_json::from_str(spec).expect("a specification");
    match run_whole(&spec) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn run_whole(spec: &LaunchSpec) -> Result<u8, LaunchError> {
    let mut launched = launch(spec)?;
    if let Ok(file) = std::env::var("PID_FILE") {
        fs::write(file, launched.pid().to_string()).expect("a file of the scenario");
    }
    launched.release()?;
    if spec.log.is_some() { Ok(0) } else { launched.wait() }
}

/// Opens a tap and closes it, or prints the text of the error.
pub(crate) fn tap(request: &str) -> ExitCode {
    let request: TapRequest = serde_json::from_str(request).expect("a request");
    match open_tap(&request) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
