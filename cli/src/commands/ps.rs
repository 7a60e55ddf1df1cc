//! `lichen ps` and `lichen rm`.

use std::process::ExitCode;

use lichen_api::{Force, PublishedPort, VmAttachment, Workload, WorkloadKind};

use super::each::{each, told};
use crate::args::{Output, Rm};
use crate::{Outcome, daemon, output};

/// Lists workloads.
pub(crate) async fn ps(format: Output) -> Outcome {
    let workloads = daemon::connect().await?.workloads().await?;
    match format {
        Output::Json => output::json(&workloads)?,
        Output::Table => output::table(
            &["NAME", "KIND", "NETWORK", "IP", "IPV6", "MAC", "PORTS", "STATE"],
            &workloads.iter().map(row).collect::<Vec<_>>(),
        )?,
    }
    Ok(ExitCode::SUCCESS)
}

fn row(workload: &Workload) -> Vec<String> {
    let ports: Vec<String> = workload.ports.iter().map(published).collect();
    vec![
        workload.name.clone(),
        match workload.kind {
            WorkloadKind::Run => "run".to_owned(),
            WorkloadKind::Attach => "attach".to_owned(),
            WorkloadKind::Vm => match workload.attachment {
                None | Some(VmAttachment::VhostUser) => "vm".to_owned(),
                Some(other) => format!("vm/{}", other.name()),
            },
        },
        workload.network.clone(),
        workload.address.to_string(),
        workload.address6.map_or_else(String::new, |address| address.to_string()),
        workload.mac.clone(),
        ports.join(", "),
        workload.state.to_string(),
    ]
}

fn published(port: &PublishedPort) -> String {
    let host = std::net::SocketAddr::new(port.host_ip, port.host_port);
    format!("{host}->{}/{}", port.target_port, port.protocol)
}

/// Removes workloads; each is tried.
pub(crate) async fn rm(arguments: &Rm, format: Output) -> Outcome {
    let client = daemon::connect().await?;
    let force = if arguments.force { Force::Yes } else { Force::No };
    let removed =
        each(&arguments.names, async |name| client.remove_workload(name, force).await).await;
    told(removed, format)
}
