//! `lichen network`: the commands and the table of Docker's.

use std::process::ExitCode;

use lichen_api::{CreateNetwork, Creation, Force};

use super::each::{each, told};
use crate::args::{NetworkCommand, Output};
use crate::{Outcome, daemon, output};

/// Docker says the same.
#[derive(Debug, thiserror::Error)]
#[error("network with name {0} already exists")]
struct AlreadyExists(String);

/// Does what a `network` command says.
pub(crate) async fn network(command: &NetworkCommand, format: Output) -> Outcome {
    match command {
        NetworkCommand::Ls => list(format).await,
        NetworkCommand::Create(create) => {
            let (subnet, subnet6) = create.subnets()?;
            let request = CreateNetwork {
                name: create.name.clone(),
                subnet,
                subnet6,
                enable_ipv6: Some(create.ipv6),
                gateway: create.gateway.clone(),
                internal: create.internal,
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
        NetworkCommand::Prune => {
            let pruned = daemon::connect().await?.prune_networks().await?;
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

async fn list(format: Output) -> Outcome {
    let networks = daemon::connect().await?.networks().await?;
    if format == Output::Json {
        output::json(&networks)?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<Vec<String>> = networks
        .into_iter()
        .map(|network| vec![network.id, network.name, network.driver, network.scope])
        .collect();
    output::table(&["NETWORK ID", "NAME", "DRIVER", "SCOPE"], &rows)?;
    Ok(ExitCode::SUCCESS)
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
