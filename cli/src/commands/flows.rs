//! `lichen flows`: who speaks with whom outside, now.

use std::io::{self, IsTerminal as _};
use std::process::ExitCode;
use std::time::Duration;

use lichen_api::{Flow, Flows};

use crate::args::{self, Output};
use crate::{Outcome, daemon, output};

/// How often a watched list is shown.
const PAUSE: Duration = Duration::from_secs(1);

/// Lists flows, and with `watch` goes on.
pub(crate) async fn flows(arguments: &args::Flows, format: Output) -> Outcome {
    let client = daemon::connect().await?;
    loop {
        let flows = client.flows(arguments.workload.as_deref()).await?;
        if arguments.watch && format == Output::Table && io::stdout().is_terminal() {
            output::clear_screen()?;
        }
        show(&flows, format)?;
        if !arguments.watch {
            return Ok(ExitCode::SUCCESS);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn show(flows: &Flows, format: Output) -> io::Result<()> {
    if format == Output::Json {
        return output::json(flows);
    }
    output::table(
        &["WORKLOAD", "PROTO", "GUEST", "REMOTE", "STATE", "IDLE", "SENT", "RECEIVED"],
        &flows.flows.iter().map(row).collect::<Vec<_>>(),
    )?;
    if flows.left_out > 0 {
        output::line(&format!("… and {} more; name a workload to see its own", flows.left_out))?;
    }
    Ok(())
}

fn row(flow: &Flow) -> Vec<String> {
    vec![
        flow.workload.clone(),
        flow.protocol.name().to_owned(),
        flow.guest.to_string(),
        flow.remote.to_string(),
        flow.state.name().to_owned(),
        format!("{}s", flow.idle_seconds),
        output::bytes(flow.bytes_from_guest),
        output::bytes(flow.bytes_to_guest),
    ]
}
