//! Networks: make, remove, show.

use std::str::FromStr;

use lichen_api::{
    CreateNetwork, Creation, Filters, Network, NetworkSummary, PruneNetworks, Pruned, Removed,
};

use rusqlite::Transaction;

use super::network_filter::{ListFilter, PruneFilter};
use super::{App, Refusal, network_view, now};
use crate::ipam;
use crate::names::NetworkName;
use crate::state::{self, InUse, Ipv6Wish, NetworkError, NetworkRow, NewNetwork, snapshot};

/// Bounds on labels, so that a definition stays a definition.
const MAX_LABELS: usize = 64;
const MAX_LABEL_BYTES: usize = 4096;

impl App {
    /// The networks that are wanted, oldest first.
    pub async fn networks(&self, filters: &Filters) -> Result<Vec<NetworkSummary>, Refusal> {
        let filter = ListFilter::parse(filters)?;
        let snapshot = self.store.transact(snapshot).await?;
        let wanted = snapshot.networks.iter().filter(|row| filter.matches(row));
        Ok(wanted.map(|row| network_view::summary(row, &snapshot.workloads)).collect())
    }

    /// One network by name or id.
    pub async fn network(&self, name: String) -> Result<Network, Refusal> {
        let at = now();
        self.store
            .transact(move |tx| {
                let row = state::network_named(tx, &name)?;
                shown(tx, &row, at)
            })
            .await
    }

    /// Makes a network.
    pub async fn create_network(
        &self,
        request: CreateNetwork,
    ) -> Result<(Creation, Network), Refusal> {
        let new = wanted(request)?;
        let routes = ipam::host_routes();
        let at = now();
        let made = self
            .store
            .transact(move |tx| {
                let (creation, row) = state::insert_network(tx, &new, &routes, at)?;
                Ok::<_, Refusal>((creation, shown(tx, &row, at)?))
            })
            .await?;
        self.reconciler.sync().await;
        Ok(made)
    }

    /// Removes a network; with [`InUse::Detach`] its workloads lose it first.
    pub async fn remove_network(&self, name: String, in_use: InUse) -> Result<Removed, Refusal> {
        let (row, left) = self
            .store
            .transact(move |tx| {
                let row = state::remove_network(tx, &name, in_use)?;
                Ok::<_, Refusal>((row, state::workloads(tx)?))
            })
            .await?;
        let left: Vec<_> = left.iter().map(|workload| workload.id).collect();
        self.processes.keep_only(&left);
        self.reconciler.sync().await;
        Ok(Removed { removed: row.name })
    }

    /// Removes every network that nobody uses and that is wanted gone, the default one excepted.
    pub async fn prune_networks(&self, request: PruneNetworks) -> Result<Pruned, Refusal> {
        let filter = PruneFilter::parse(&request.filters, now())?;
        let networks_deleted = self
            .store
            .transact(move |tx| state::prune_networks(tx, |row| filter.matches(row)))
            .await?;
        self.reconciler.sync().await;
        Ok(Pruned { networks_deleted })
    }
}

fn shown(tx: &Transaction<'_>, row: &NetworkRow, at: i64) -> Result<Network, Refusal> {
    let addresses = state::address_use(tx, row, at)?;
    Ok(network_view::network(row, &state::workloads(tx)?, addresses))
}

fn wanted(request: CreateNetwork) -> Result<NewNetwork, Refusal> {
    let name = NetworkName::parse(&request.name)?;
    if request.subnet.is_none() && request.gateway.is_some() {
        return Err(Refusal::bad_request("a gateway needs its subnet; add --subnet"));
    }
    let ipv6 = ipv6_wish(&request)?;
    if request.nat64 && ipv6 == Ipv6Wish::Off {
        return Err(Refusal::bad_request("NAT64 is reached over IPv6; leave out --ipv6=false"));
    }
    if request.nat64 && request.internal {
        return Err(Refusal::bad_request(
            "an internal network has no way out, and so none by NAT64; leave out --internal",
        ));
    }
    let bytes: usize = request.labels.iter().map(|(key, value)| key.len() + value.len()).sum();
    if request.labels.len() > MAX_LABELS || bytes > MAX_LABEL_BYTES {
        return Err(Refusal::bad_request(format!(
            "too many labels: at most {MAX_LABELS}, of {MAX_LABEL_BYTES} bytes together"
        )));
    }
    Ok(NewNetwork {
        name,
        subnet: match request.subnet {
            Some(text) => {
                Some(text.parse().map_err(|error| Refusal::bad_request(format!("{error}")))?)
            }
            None => None,
        },
        gateway: request.gateway.map(|text| address(&text, "IPv4")).transpose()?,
        ipv6,
        internal: request.internal,
        nat64: request.nat64,
        labels: request.labels,
    })
}

fn ipv6_wish(request: &CreateNetwork) -> Result<Ipv6Wish, Refusal> {
    let off = request.enable_ipv6 == Some(false);
    let prefix = match (&request.subnet6, &request.gateway6) {
        (None, None) if off => return Ok(Ipv6Wish::Off),
        (None, None) => return Ok(Ipv6Wish::Own),
        (_, Some(_)) if off => {
            return Err(Refusal::bad_request("an IPv6 gateway needs IPv6; leave out --ipv6=false"));
        }
        (None, Some(_)) => {
            return Err(Refusal::bad_request(
                "an IPv6 gateway needs its subnet; add one such as --subnet fd12:3456:789a:1::/64",
            ));
        }
        (Some(_), _) if off => {
            return Err(Refusal::bad_request("an IPv6 subnet needs IPv6; leave out --ipv6=false"));
        }
        (Some(text), _) => {
            text.parse().map_err(|error| Refusal::bad_request(format!("{error}")))?
        }
    };
    if let Some(text) = &request.gateway6 {
        ipam::check_gateway6(prefix, address(text, "IPv6")?).map_err(NetworkError::from)?;
    }
    Ok(Ipv6Wish::Prefix(prefix))
}

fn address<A: FromStr>(text: &str, family: &str) -> Result<A, Refusal> {
    text.parse().map_err(|_| {
        Refusal::bad_request(format!(
            "gateway `{}` is not an {family} address",
            text.chars().take(60).collect::<String>().escape_default()
        ))
    })
}
