//! `lichen network`: the commands and the table of Docker's.

use std::process::ExitCode;

use lichen_api::{CreateNetwork, Creation, Force, NetworkSummary, PruneNetworks};

use super::each::{each, told};
use crate::args::{ListNetworks, NetworkCommand, Output, network_filters};
use crate::template::{Field, Format, json_line};
use crate::{Outcome, daemon, output};

/// Docker says the same.
#[derive(Debug, thiserror::Error)]
#[error("network with name {0} already exists")]
struct AlreadyExists(String);

/// Does what a `network` command says.
pub(crate) async fn network(command: &NetworkCommand, format: Output) -> Outcome {
    match command {
        NetworkCommand::Ls(ls) => list(ls, format).await,
        NetworkCommand::Create(create) => {
            let (subnets, gateways) = (create.subnets()?, create.gateways()?);
            let request = CreateNetwork {
                name: create.name.clone(),
                subnet: subnets.v4,
                subnet6: subnets.v6,
                enable_ipv6: Some(create.ipv6),
                gateway: gateways.v4,
                gateway6: gateways.v6,
                internal: create.internal,
                nat64: create.nat64,
                labels: create.labels(),
            };
            let (creation, network) = daemon::connect().await?.create_network(&request).await?;
            if creation == Creation::Existing {
                return Err(AlreadyExists(network.name).into());
            }
            match format {
                Output::Json => output::json(&network)?,
                Output::Table => output::line(&network.id)?,
            }
            Ok(ExitCode::SUCCESS)
        }
        NetworkCommand::Rm(rm) => {
            let force = if rm.force { Force::Yes } else { Force::No };
            remove(&rm.names, force, format).await
        }
        NetworkCommand::Inspect { names } => inspect(names).await,
        NetworkCommand::Prune(prune) => {
            let request = PruneNetworks { filters: network_filters(&prune.filter)? };
            let pruned = daemon::connect().await?.prune_networks(&request).await?;
            match format {
                Output::Json => output::json(&pruned)?,
                Output::Table if pruned.networks_deleted.is_empty() => {
                    output::line("No unused networks.")?;
                }
                Output::Table => output::line(&format!(
                    "Deleted Networks:\n{}",
                    pruned.networks_deleted.join("\n")
                ))?,
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn list(ls: &ListNetworks, output: Output) -> Outcome {
    let networks = daemon::connect().await?.networks(&network_filters(&ls.filter)?).await?;
    if output == Output::Json {
        output::json(&networks)?;
        return Ok(ExitCode::SUCCESS);
    }
    if ls.quiet {
        networks.iter().try_for_each(|network| output::line(&network.id))?;
        return Ok(ExitCode::SUCCESS);
    }
    match ls.format.as_ref().unwrap_or(&Format::Table) {
        Format::Table => {
            let rows: Vec<Vec<String>> = networks
                .into_iter()
                .map(|network| vec![network.id, network.name, network.driver, network.scope])
                .collect();
            output::table(&["NETWORK ID", "NAME", "DRIVER", "SCOPE"], &rows)?;
        }
        Format::Columns(columns) => {
            let heading: Vec<String> =
                columns.iter().map(|column| column.heading(&FIELDS)).collect();
            let heading: Vec<&str> = heading.iter().map(String::as_str).collect();
            let row = |network| columns.iter().map(|it| it.filled(network, &FIELDS)).collect();
            output::table(&heading, &networks.iter().map(row).collect::<Vec<_>>())?;
        }
        Format::Json => {
            networks.iter().try_for_each(|network| output::line(&json_line(network, &FIELDS)))?;
        }
        Format::Text(template) => networks
            .iter()
            .try_for_each(|network| output::line(&template.filled(network, &FIELDS)))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// What `network ls --format` can show, under Docker's names.
pub(crate) const FIELDS: [Field<NetworkSummary>; 8] = [
    Field { name: "ID", heading: "NETWORK ID", value: |network| network.id.clone() },
    Field { name: "Name", heading: "NAME", value: |network| network.name.clone() },
    Field { name: "Driver", heading: "DRIVER", value: |network| network.driver.clone() },
    Field { name: "Scope", heading: "SCOPE", value: |network| network.scope.clone() },
    Field { name: "IPv6", heading: "IPV6", value: |network| network.ipv6.to_string() },
    Field { name: "Internal", heading: "INTERNAL", value: |network| network.internal.to_string() },
    Field { name: "Labels", heading: "LABELS", value: labels },
    Field { name: "CreatedAt", heading: "CREATED AT", value: |network| network.created_at.clone() },
];

fn labels(network: &NetworkSummary) -> String {
    let labels = network.labels.iter().map(|(key, value)| format!("{key}={value}"));
    labels.collect::<Vec<_>>().join(",")
}

async fn remove(names: &[String], force: Force, format: Output) -> Outcome {
    let client = daemon::connect().await?;
    told(each(names, async |name| client.remove_network(name, force).await).await, format)
}

/// What is found is shown, as Docker does, even when something else is not.
async fn inspect(names: &[String]) -> Outcome {
    let client = daemon::connect().await?;
    let (found, code) = each(names, async |name| client.network(name).await).await;
    output::json(&found)?;
    Ok(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_placeholder_shows_its_own_and_json_has_them_all_as_docker_does() {
        let network = NetworkSummary {
            id: "a1b2c3d4e5f6".into(),
            name: "mynet".into(),
            driver: "bridge".into(),
            scope: "local".into(),
            subnet: "10.89.0.0/16".into(),
            ipv6: true,
            internal: false,
            labels: [("b", "2"), ("a", "")].map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            connected: 3,
            created_at: "2024-01-15T10:30:00Z".into(),
        };
        let line = r#"{"CreatedAt":"2024-01-15T10:30:00Z","Driver":"bridge","ID":"a1b2c3d4e5f6","IPv6":"true","#;
        let rest = r#""Internal":"false","Labels":"a=,b=2","Name":"mynet","Scope":"local"}"#;
        assert_eq!(json_line(&network, &FIELDS), format!("{line}{rest}"));
    }
}
