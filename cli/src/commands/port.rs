//! `lichen port`: published ports.

use std::process::ExitCode;

use lichen_api::{AddPort, PublishedPort, RemovePort, Source};

use crate::args::{Output, PortCommand};
use crate::{Outcome, daemon, output};

/// Does what a `port` command says.
pub(crate) async fn port(command: &PortCommand, format: Output) -> Outcome {
    let client = daemon::connect().await?;
    let ports = match command {
        PortCommand::Ls => client.ports().await?,
        PortCommand::Add(add) => {
            let request = AddPort {
                host_ip: Some(add.host_ip),
                host: add.host_port,
                target: add.target.clone(),
                target_ports: add.target_port,
                protocol: add.proto,
                source: if add.snat { Source::Gateway } else { Source::Client },
            };
            client.add_port(&request).await?.1
        }
        PortCommand::Rm(rm) => {
            let mut removed = Vec::new();
            for host in rm.host_port.iter().chain(&rm.ports) {
                let request =
                    RemovePort { host_ip: rm.host_ip, host: host.range, protocol: host.protocol };
                removed.extend(client.remove_port(&request).await?);
            }
            if format == Output::Table {
                for port in &removed {
                    output::line(&format!(
                        "{}:{}/{}",
                        shown_ip(port),
                        port.host_port,
                        port.protocol
                    ))?;
                }
                return Ok(ExitCode::SUCCESS);
            }
            removed
        }
    };
    match format {
        Output::Json => output::json(&ports)?,
        Output::Table => output::table(
            &["HOST-PORT", "TARGET", "TARGET-PORT", "PROTO", "STATUS"],
            &ports.iter().map(row).collect::<Vec<_>>(),
        )?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The default address is left out, as nobody typed it.
fn row(port: &PublishedPort) -> Vec<String> {
    let host = if port.host_ip.is_loopback() && port.host_ip.is_ipv4() {
        port.host_port.to_string()
    } else {
        format!("{}:{}", shown_ip(port), port.host_port)
    };
    vec![
        host,
        port.target.clone(),
        port.target_port.to_string(),
        port.protocol.to_string(),
        port.status.to_string(),
    ]
}

fn shown_ip(port: &PublishedPort) -> String {
    if port.host_ip.is_ipv6() { format!("[{}]", port.host_ip) } else { port.host_ip.to_string() }
}

#[cfg(test)]
mod tests {
    use lichen_api::{State, Transport};

    use super::*;

    #[test]
    fn a_row_shows_the_address_only_when_it_is_not_the_default() {
        let mut port = PublishedPort {
            id: 1,
            host_ip: "127.0.0.1".parse().unwrap(),
            host_port: 80,
            target: "web-frontend".into(),
            target_port: 80,
            protocol: Transport::Tcp,
            status: State::Active,
            source: Source::Client,
            ends_with_workload: false,
        };
        assert_eq!(row(&port), ["80", "web-frontend", "80", "tcp", "active"]);
        port.host_ip = "::".parse().unwrap();
        port.status = State::Error { reason: "in use".into() };
        assert_eq!(row(&port), ["[::]:80", "web-frontend", "80", "tcp", "error(in use)"]);
    }
}
