//! Networks, in the keys of `docker network inspect` and `docker network ls`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// One network, with Docker's keys (`GET /v1/networks/NAME`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Network {
    /// Its name.
    pub name: String,
    /// 64 hexadecimal digits.
    pub id: String,
    /// RFC 3339, UTC, whole seconds: `2024-01-15T10:30:00Z`.
    pub created: String,
    /// Always `local`.
    pub scope: String,
    /// Always `bridge`: members share one switch.
    pub driver: String,
    /// Whether it carries IPv6.
    #[serde(rename = "EnableIPv6")]
    pub enable_ipv6: bool,
    /// Its addresses.
    #[serde(rename = "IPAM")]
    pub ipam: Ipam,
    /// No way out: only members reach each other.
    pub internal: bool,
    /// Whether its members reach IPv4 under 64:ff9b::/96. Docker has no such key; ours begins so that it never will.
    #[serde(rename = "LichenNAT64", default)]
    pub nat64: bool,
    /// Whether workloads may be attached by hand; always true.
    pub attachable: bool,
    /// Docker's swarm ingress; always false.
    pub ingress: bool,
    /// Docker's config-only networks: always an empty network name.
    pub config_from: ConfigFrom,
    /// Always false.
    pub config_only: bool,
    /// Attached workloads by 64-digit endpoint id.
    pub containers: BTreeMap<String, Container>,
    /// `com.docker.network.bridge.name` and `com.docker.network.driver.mtu`.
    pub options: BTreeMap<String, String>,
    /// The user's own labels.
    pub labels: BTreeMap<String, String>,
}

/// Docker's `ConfigFrom`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ConfigFrom {
    /// Always empty.
    pub network: String,
}

/// Docker's `IPAM`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Ipam {
    /// Always `default`.
    pub driver: String,
    /// One entry per subnet: IPv4 first, then IPv6 where the network has it.
    pub config: Vec<IpamConfig>,
}

/// One subnet of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct IpamConfig {
    /// `10.88.0.0/16`.
    pub subnet: String,
    /// `10.88.0.1`.
    pub gateway: IpAddr,
    /// How many addresses there are, in the entry of IPv4. Docker has no such key; ours begins so that it never will.
    #[serde(rename = "LichenAddresses", default, skip_serializing_if = "Option::is_none")]
    pub addresses: Option<Addresses>,
}

/// How many addresses a network has. A workload has one of each family with the same number, so that these count
/// for IPv6 too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Addresses {
    /// Those that workloads may have. The subnet's first and last and the gateway's are none of them.
    pub total: u32,
    /// Those that workloads have.
    pub used: u32,
    /// Those that stay for a while with whoever had them.
    pub reserved: u32,
    /// What is left.
    pub free: u32,
}

/// One attached workload, as Docker shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// The workload's name.
    #[serde(rename = "Name")]
    pub name: String,
    /// 64 hexadecimal digits.
    #[serde(rename = "EndpointID")]
    pub endpoint_id: String,
    /// `02:4c:0a:58:00:02`.
    #[serde(rename = "MacAddress")]
    pub mac_address: String,
    /// With the length of the network's prefix: `10.88.0.2/16`.
    #[serde(rename = "IPv4Address")]
    pub ipv4_address: String,
    /// The same in IPv6, `fd12:3456:789a:1::2/64`; empty on a network without it.
    #[serde(rename = "IPv6Address")]
    pub ipv6_address: String,
}

/// A row of `network ls`, with the keys of `docker network ls --format json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSummary {
    /// First twelve digits of the id.
    #[serde(rename = "ID")]
    pub id: String,
    /// Its name.
    #[serde(rename = "Name")]
    pub name: String,
    /// Always `bridge`.
    #[serde(rename = "Driver")]
    pub driver: String,
    /// Always `local`.
    #[serde(rename = "Scope")]
    pub scope: String,
    /// `10.88.0.0/16`.
    #[serde(rename = "Subnet")]
    pub subnet: String,
    /// Whether it carries IPv6.
    #[serde(rename = "IPv6")]
    pub ipv6: bool,
    /// No way out.
    #[serde(rename = "Internal")]
    pub internal: bool,
    /// The user's own labels.
    #[serde(rename = "Labels", default)]
    pub labels: BTreeMap<String, String>,
    /// How many workloads are attached.
    #[serde(rename = "Connected")]
    pub connected: usize,
    /// RFC 3339, UTC.
    #[serde(rename = "CreatedAt")]
    pub created_at: String,
}

/// `POST /v1/networks`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateNetwork {
    /// Its name, one DNS label.
    pub name: String,
    /// Left out, one is picked that clashes with nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet: Option<String>,
    /// Left out, the first address of the subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// That of IPv6: the first address of `subnet6`, whether said or left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway6: Option<String>,
    /// Its IPv6 addresses, a /64; left out, one of this installation's own (RFC 4193).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet6: Option<String>,
    /// Whether it carries IPv6; left out, it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enable_ipv6: Option<bool>,
    /// No way out.
    #[serde(default)]
    pub internal: bool,
    /// Members reach IPv4 under 64:ff9b::/96 (NAT64, DNS64). Needs IPv6 and a way out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub nat64: bool,
    /// The user's own labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// Which networks are meant, as Docker says it: for each key the values that it may have, such as `name` and
/// `["web"]`.
///
/// `GET /v1/networks?filters=` takes it as percent-encoded JSON, and knows the keys `driver`, `id`, `label`, `name`,
/// `scope` and `type`; pruning knows `label`, `label!` and `until`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Filters(pub BTreeMap<String, Vec<String>>);

/// `POST /v1/networks/prune`; an empty body is one without filters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PruneNetworks {
    /// Which of the networks that nobody uses.
    #[serde(default)]
    pub filters: Filters,
}

/// Answer of `POST /v1/networks/prune`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Pruned {
    /// Names of the networks that were removed.
    pub networks_deleted: Vec<String>,
}

/// Answer of every DELETE.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// Name or number of what is gone.
    pub removed: String,
}
