//! `lichen ps` and `lichen rm`.

use std::process::ExitCode;

use lichen_api::{Force, PublishedPort, VmAttachment, Workload, WorkloadKind};

use super::each::{each, told};
use crate::args::{Output, Rm};
use crate::{Outcome, daemon, output};

const COLUMNS: [&str; 8] = ["NAME", "KIND", "NETWORK", "IP", "IPV6", "MAC", "PORTS", "STATE"];

/// Lists workloads.
pub(crate) async fn ps(format: Output) -> Outcome {
    let workloads = daemon::connect().await?.workloads().await?;
    match format {
        Output::Json => output::json(&workloads)?,
        Output::Table => output::table(&COLUMNS, &workloads.iter().map(row).collect::<Vec<_>>())?,
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

#[cfg(test)]
mod tests {
    use lichen_api::{Source, State, Transport, WorkloadState};

    use super::*;

    fn port(host_ip: &str, host_port: u16, protocol: Transport) -> PublishedPort {
        PublishedPort {
            id: 1,
            host_ip: host_ip.parse().unwrap(),
            host_port,
            target: "db".into(),
            target_port: 53,
            protocol,
            status: State::Active,
            source: Source::Client,
            ends_with_workload: true,
        }
    }

    #[test]
    fn a_workload_is_shown_in_eight_columns() {
        let mut workload = Workload {
            name: "db".into(),
            id: "a1".repeat(32),
            kind: WorkloadKind::Vm,
            network: "backend".into(),
            address: [10, 89, 0, 2].into(),
            prefix_len: 16,
            address6: Some("fd12:3456:789a:1::2".parse().unwrap()),
            mac: "02:4c:0a:59:00:02".into(),
            state: WorkloadState::Running,
            pid: None,
            socket: None,
            attachment: Some(VmAttachment::Dgram),
            queues: None,
            mtu: 1500,
            created: "2024-01-15T10:30:00Z".into(),
            ports: vec![port("127.0.0.1", 8080, Transport::Tcp), port("::1", 5353, Transport::Udp)],
            allow_host: vec![],
        };
        let shown: Vec<_> = COLUMNS.into_iter().zip(row(&workload)).collect();
        let expected = [
            ("NAME", "db"),
            ("KIND", "vm/dgram"),
            ("NETWORK", "backend"),
            ("IP", "10.89.0.2"),
            ("IPV6", "fd12:3456:789a:1::2"),
            ("MAC", "02:4c:0a:59:00:02"),
            ("PORTS", "127.0.0.1:8080->53/tcp, [::1]:5353->53/udp"),
            ("STATE", "running"),
        ];
        assert_eq!(shown, expected.map(|(column, cell)| (column, cell.to_owned())));
        (workload.kind, workload.attachment, workload.address6) = (WorkloadKind::Run, None, None);
        (workload.ports, workload.state) =
            (vec![], WorkloadState::Error { reason: "the tap is gone".into() });
        let row = row(&workload);
        assert_eq!((row[1].as_str(), row[4].as_str(), row[6].as_str()), ("run", "", ""));
        assert_eq!(row[7], "error(the tap is gone)");
    }
}
