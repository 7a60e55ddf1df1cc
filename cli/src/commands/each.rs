//! Commands that take several names: each is tried; what fails is told, and makes the whole fail.

use std::process::ExitCode;

use lichen_api::{ClientError, Removed};

use crate::args::Output;
use crate::{Outcome, exit, output};

/// What came of each name that succeeded, and the exit code of the whole.
pub(super) async fn each<T>(
    names: &[String],
    work: impl AsyncFn(&str) -> Result<T, ClientError>,
) -> (Vec<T>, ExitCode) {
    let (mut done, mut code) = (Vec::new(), ExitCode::SUCCESS);
    for name in names {
        match work(name).await {
            Ok(result) => done.push(result),
            Err(error) => {
                eprintln!("lichen: {}", exit::chain(&error));
                code = ExitCode::FAILURE;
            }
        }
    }
    (done, code)
}

/// Says what was removed.
pub(super) fn told((removed, code): (Vec<Removed>, ExitCode), format: Output) -> Outcome {
    match format {
        Output::Json => output::json(&removed)?,
        Output::Table => {
            for gone in &removed {
                output::line(&gone.removed)?;
            }
        }
    }
    Ok(code)
}
