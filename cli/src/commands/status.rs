//! `lichen status` and `lichen version`.

use std::process::ExitCode;

use lichen_api::{Client, ClientError, DatapathState, RuntimeDirectory, Status, VERSION};

use crate::args::Output;
use crate::{Outcome, daemon, output};

/// Shows how daemon and datapath are.
pub(crate) async fn status(format: Output) -> Outcome {
    let status = daemon::connect().await?.status().await?;
    match format {
        Output::Json => output::json(&status)?,
        Output::Table => {
            for (key, value) in lines(&status) {
                output::line(&format!("{:<12}{value}", format!("{key}:")))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn lines(status: &Status) -> Vec<(&'static str, String)> {
    let resolvers: Vec<String> = status.resolvers.iter().map(ToString::to_string).collect();
    let datapath = match &status.datapath.state {
        DatapathState::Running { pid, version, workers, busy_poll_us } => {
            let busy_poll = match *busy_poll_us {
                0 => String::new(),
                micros => format!(", busy-poll {micros} µs"),
            };
            format!(
                "running (version {version}, process {pid}, workers {workers}{busy_poll}, restarts {})",
                status.datapath.restarts
            )
        }
        DatapathState::Starting { reason: Some(reason) } => format!("starting ({reason})"),
        DatapathState::Starting { reason: None } => "starting".to_owned(),
    };
    let control = format!(
        "running (version {}, process {}, for {} s)",
        status.version, status.pid, status.uptime_seconds
    );
    vec![
        ("control", control),
        ("datapath", datapath),
        ("networks", status.networks.to_string()),
        ("workloads", status.workloads.to_string()),
        ("ports", status.ports.to_string()),
        ("resolvers", resolvers.join(", ")),
        ("runtime", status.runtime_directory.clone()),
        ("state", status.state_directory.clone()),
    ]
}

/// Shows our version, and the daemon's if one runs; never starts one.
pub(crate) async fn version(format: Output) -> Outcome {
    let client = Client::new(RuntimeDirectory::prepare()?.control_socket());
    let daemon = match client.version().await {
        Ok(version) => Some(version),
        Err(ClientError::Unreachable { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    match format {
        Output::Json => {
            output::json(&serde_json::json!({ "client": VERSION, "daemon": daemon }))?;
        }
        Output::Table => {
            output::line(&format!("lichen {VERSION}"))?;
            match daemon {
                Some(daemon) if daemon.version == VERSION => {
                    output::line(&format!("daemon {}", daemon.version))?;
                }
                Some(daemon) => output::line(&format!(
                    "daemon {} (bring it up to date with: lichen daemon restart --datapath)",
                    daemon.version
                ))?,
                None => output::line("daemon not running")?,
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
