//! `lichen logs`: the output of a detached workload, which is a file in the state directory.

use std::fs::File;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use lichen_api::Directories;

use crate::args::Logs;
use crate::{Outcome, daemon};

/// How often a followed file is looked at.
const PAUSE: Duration = Duration::from_millis(200);

/// Why there is no output to show.
#[derive(Debug, thiserror::Error)]
enum LogsError {
    #[error("`{0}` is not the name of a workload")]
    Name(String),
    #[error("there is no output of a workload `{0}`; only `lichen run -d` keeps it")]
    None(String),
}

/// Prints a workload's output, and with `follow` goes on until the workload ends.
pub(crate) async fn logs(arguments: &Logs) -> Outcome {
    let name = arguments.name.to_ascii_lowercase();
    // It becomes a file name.
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        return Err(LogsError::Name(arguments.name.escape_default().to_string()).into());
    }
    let mut log = match File::open(Directories::prepare()?.state.workload_log(&name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(LogsError::None(name).into());
        }
        log => log?,
    };
    let mut out = io::stdout().lock();
    io::copy(&mut log, &mut out)?;
    out.flush()?;
    if !arguments.follow {
        return Ok(ExitCode::SUCCESS);
    }
    let client = daemon::connect().await?;
    loop {
        let running = client.workloads().await?.iter().any(|workload| workload.name == name);
        io::copy(&mut log, &mut out)?;
        out.flush()?;
        if !running {
            return Ok(ExitCode::SUCCESS);
        }
        tokio::time::sleep(PAUSE).await;
    }
}
