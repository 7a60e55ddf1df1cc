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
        remote(flow),
        flow.state.name().to_owned(),
        format!("{}s", flow.idle_seconds),
        output::bytes(flow.bytes_from_guest),
        output::bytes(flow.bytes_to_guest),
    ]
}

/// The other end; what is reached by NAT64 in the notation that shows both (RFC 5952 5).
fn remote(flow: &Flow) -> String {
    match flow.nat64 {
        Some(over4) => format!("[64:ff9b::{}]:{}", over4.ip(), over4.port()),
        None => flow.remote.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use lichen_api::{FlowProtocol, FlowState};

    use super::*;

    #[test]
    fn what_goes_by_nat64_shows_where_it_goes_and_what_the_workload_asked_for() {
        let mut flow = Flow {
            workload: "web".into(),
            network: "six".into(),
            protocol: FlowProtocol::Tcp,
            guest: "[fd12::2]:4000".parse().unwrap(),
            remote: "[64:ff9b::c000:221]:80".parse().unwrap(),
            nat64: Some("192.0.2.33:80".parse().unwrap()),
            state: FlowState::Established,
            idle_seconds: 0,
            bytes_from_guest: 0,
            bytes_to_guest: 0,
        };
        let shown = remote(&flow);
        assert_eq!(shown, "[64:ff9b::192.0.2.33]:80");
        assert_eq!(shown.parse(), Ok(flow.remote), "it is the same address");
        flow.nat64 = None;
        assert_eq!(remote(&flow), "[64:ff9b::c000:221]:80");
    }
}
