//! From rows to what the API answers of networks, in Docker's keys. Pure.

use std::collections::BTreeMap;

use lichen_api::{Addresses, ConfigFrom, Container, Ipam, IpamConfig, Network, NetworkSummary};

use crate::state::{AddressUse, NetworkRow, WorkloadRow};

/// A network in Docker's keys.
pub(super) fn network(
    row: &NetworkRow,
    workloads: &[WorkloadRow],
    addresses: AddressUse,
) -> Network {
    let containers = workloads
        .iter()
        .filter(|workload| workload.network == row.id)
        .map(|workload| {
            let container = Container {
                name: workload.name.clone(),
                endpoint_id: workload.uid.clone(),
                mac_address: workload.mac.to_string(),
                ipv4_address: format!("{}/{}", workload.address, row.subnet.len()),
                ipv6_address: row
                    .address6_of(workload.address)
                    .map_or_else(String::new, |address| format!("{address}/64")),
            };
            (workload.uid.clone(), container)
        })
        .collect();
    Network {
        name: row.name.clone(),
        id: row.uid.clone(),
        created: row.created.clone(),
        scope: "local".to_owned(),
        driver: "bridge".to_owned(),
        enable_ipv6: row.prefix6.is_some(),
        ipam: Ipam { driver: "default".to_owned(), config: ipam_config(row, addresses) },
        internal: row.internal,
        nat64: row.nat64,
        attachable: true,
        ingress: false,
        config_from: ConfigFrom::default(),
        config_only: false,
        containers,
        options: BTreeMap::from([
            ("com.docker.network.bridge.name".to_owned(), format!("lichen{}", row.id)),
            ("com.docker.network.driver.mtu".to_owned(), row.mtu.to_string()),
        ]),
        labels: row.labels.clone(),
    }
}

fn ipam_config(row: &NetworkRow, addresses: AddressUse) -> Vec<IpamConfig> {
    let AddressUse { total, used, reserved } = addresses;
    let v4 = IpamConfig {
        subnet: row.subnet.to_string(),
        gateway: row.gateway.into(),
        addresses: Some(Addresses { total, used, reserved, free: addresses.free() }),
    };
    let v6 = row.prefix6.map(|prefix| IpamConfig {
        subnet: prefix.to_string(),
        gateway: prefix.with_interface_id(1).into(),
        addresses: None,
    });
    std::iter::once(v4).chain(v6).collect()
}

/// A network in a list.
pub(super) fn summary(row: &NetworkRow, workloads: &[WorkloadRow]) -> NetworkSummary {
    NetworkSummary {
        id: row.uid.chars().take(12).collect(),
        name: row.name.clone(),
        driver: "bridge".to_owned(),
        scope: "local".to_owned(),
        subnet: row.subnet.to_string(),
        ipv6: row.prefix6.is_some(),
        internal: row.internal,
        labels: row.labels.clone(),
        connected: workloads.iter().filter(|workload| workload.network == row.id).count(),
        created_at: row.created.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use lichen_api::WorkloadKind;
    use lichen_netstack::ids::{MacAddr, NetworkId, PortId};
    use serde_json::json;

    use super::*;

    fn row() -> NetworkRow {
        NetworkRow {
            id: NetworkId(7),
            uid: "a1".repeat(32),
            name: "mynet".into(),
            subnet: "10.89.0.0/16".parse().unwrap(),
            gateway: Ipv4Addr::new(10, 89, 0, 1),
            prefix6: Some("fd12:3456:789a:1::/64".parse().unwrap()),
            mtu: 1500,
            internal: true,
            nat64: true,
            labels: BTreeMap::from([
                ("tier".into(), "back".into()),
                ("bare".into(), String::new()),
            ]),
            created: "2024-01-15T10:30:00Z".into(),
            created_at: 1_705_314_600,
        }
    }

    fn workload(network: u32, name: &str) -> WorkloadRow {
        let address = Ipv4Addr::new(10, 89, 1, 2);
        WorkloadRow {
            id: PortId(3),
            uid: "b2".repeat(32),
            name: name.into(),
            kind: WorkloadKind::Run,
            attachment: None,
            queues: 1,
            network: NetworkId(network),
            address,
            mac: MacAddr::for_ipv4(address),
            allow_host: vec![],
            resolv_conf: false,
            boot_id: "boot".into(),
            created: "2024-01-15T10:30:01Z".into(),
            created_at: 1_705_314_601,
            process: None,
        }
    }

    const COUNTED: AddressUse = AddressUse { total: 65_533, used: 1, reserved: 2 };

    #[test]
    fn a_network_is_shown_with_every_key_of_docker_and_its_workloads() {
        let shown = network(&row(), &[workload(7, "web"), workload(8, "elsewhere")], COUNTED);
        let expected = json!({
            "Name": "mynet",
            "Id": "a1".repeat(32),
            "Created": "2024-01-15T10:30:00Z",
            "Scope": "local",
            "Driver": "bridge",
            "EnableIPv6": true,
            "IPAM": {
                "Driver": "default",
                "Config": [
                    {
                        "Subnet": "10.89.0.0/16",
                        "Gateway": "10.89.0.1",
                        "LichenAddresses":
                            { "Total": 65_533, "Used": 1, "Reserved": 2, "Free": 65_530 },
                    },
                    { "Subnet": "fd12:3456:789a:1::/64", "Gateway": "fd12:3456:789a:1::1" },
                ],
            },
            "Internal": true,
            "LichenNAT64": true,
            "Attachable": true,
            "Ingress": false,
            "ConfigFrom": { "Network": "" },
            "ConfigOnly": false,
            "Containers": {
                "b2".repeat(32): {
                    "Name": "web",
                    "EndpointID": "b2".repeat(32),
                    "MacAddress": "02:4c:0a:59:01:02",
                    "IPv4Address": "10.89.1.2/16",
                    "IPv6Address": "fd12:3456:789a:1::102/64",
                },
            },
            "Options": {
                "com.docker.network.bridge.name": "lichen7",
                "com.docker.network.driver.mtu": "1500",
            },
            "Labels": { "bare": "", "tier": "back" },
        });
        assert_eq!(serde_json::to_value(shown).unwrap(), expected);
    }

    #[test]
    fn a_network_without_ipv6_has_one_subnet_and_members_without_an_ipv6_address() {
        let shown = network(&NetworkRow { prefix6: None, ..row() }, &[workload(7, "web")], COUNTED);
        let shown = serde_json::to_value(shown).unwrap();
        assert_eq!(shown["EnableIPv6"], false);
        let subnets = shown["IPAM"]["Config"].as_array().unwrap();
        assert_eq!((subnets.len(), &subnets[0]["Subnet"]), (1, &json!("10.89.0.0/16")));
        assert_eq!(shown["Containers"]["b2".repeat(32)]["IPv6Address"], "");
    }

    #[test]
    fn a_row_of_the_list_counts_who_is_connected() {
        let listed = summary(&row(), &[workload(7, "web"), workload(8, "elsewhere")]);
        let expected = json!({
            "ID": "a1a1a1a1a1a1",
            "Name": "mynet",
            "Driver": "bridge",
            "Scope": "local",
            "Subnet": "10.89.0.0/16",
            "IPv6": true,
            "Internal": true,
            "Labels": { "bare": "", "tier": "back" },
            "Connected": 1,
            "CreatedAt": "2024-01-15T10:30:00Z",
        });
        assert_eq!(serde_json::to_value(listed).unwrap(), expected);
    }
}
