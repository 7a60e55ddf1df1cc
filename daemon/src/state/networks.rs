//! The rows of networks.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use lichen_netstack::ids::{Ipv4Prefix, Ipv6Prefix, NetworkId};
use rusqlite::{OptionalExtension, Transaction, params};

use super::rows::NetworkRow;
use crate::ipam::{self, HostRoutes, SubnetError};
use crate::names::NetworkName;

/// Most networks, so that ids, routes and the datapath's tables stay small.
const MAX_NETWORKS: usize = 256;

/// Why a network cannot be made or removed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// Its name is taken by one that is different.
    #[error("network `{0}` exists already; remove it first: lichen network rm {0}")]
    Exists(String),
    /// There is none.
    #[error("there is no network `{0}`; see: lichen network ls")]
    Unknown(String),
    /// More than one id begins so.
    #[error("`{0}` is the beginning of more than one network id; write more of it")]
    Ambiguous(String),
    /// Workloads are attached.
    #[error(
        "network `{name}` is in use by {users}; detach them, or use: lichen network rm -f {name}"
    )]
    InUse {
        /// Its name.
        name: String,
        /// The workloads, joined by commas.
        users: String,
    },
    /// The default network stays.
    #[error("network `{0}` is the default network and cannot be removed")]
    Default(String),
    /// Too many.
    #[error("there are {MAX_NETWORKS} networks already; remove some: lichen network prune")]
    TooMany,
    /// Its addresses.
    #[error(transparent)]
    Subnet(#[from] SubnetError),
    /// The database.
    #[error("the state could not be written")]
    Database(#[from] rusqlite::Error),
}

/// A network to make.
#[derive(Clone, Debug)]
pub struct NewNetwork {
    /// Its name.
    pub name: NetworkName,
    /// `None` picks one.
    pub subnet: Option<Ipv4Prefix>,
    /// `None` takes the first address.
    pub gateway: Option<Ipv4Addr>,
    /// Its IPv6 addresses.
    pub ipv6: Ipv6Wish,
    /// No way out.
    pub internal: bool,
    /// IPv4 is reached under 64:ff9b::/96.
    pub nat64: bool,
    /// The user's own labels.
    pub labels: BTreeMap<String, String>,
}

/// What is wanted of IPv6.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ipv6Wish {
    /// A prefix of this installation's own.
    #[default]
    Own,
    /// This one.
    Prefix(Ipv6Prefix),
    /// None.
    Off,
}

impl Ipv6Wish {
    fn describes(self, present: Option<Ipv6Prefix>) -> bool {
        match self {
            Self::Own => present.is_some(),
            Self::Prefix(prefix) => present == Some(prefix),
            Self::Off => present.is_none(),
        }
    }
}

impl NewNetwork {
    /// Whether `row` is what this asks for.
    fn describes(&self, row: &NetworkRow) -> bool {
        self.subnet.is_none_or(|subnet| subnet == row.subnet)
            && self.gateway.is_none_or(|gateway| gateway == row.gateway)
            && self.ipv6.describes(row.prefix6)
            && self.internal == row.internal
            && self.nat64 == row.nat64
            && self.labels == row.labels
    }
}

/// Makes a network; one that is there exactly so is answered as [`lichen_api::Creation::Existing`].
pub fn insert_network(
    tx: &Transaction<'_>,
    new: &NewNetwork,
    routes: &HostRoutes,
    now: i64,
) -> Result<(lichen_api::Creation, NetworkRow), NetworkError> {
    let present = networks(tx)?;
    if let Some(row) = present.iter().find(|row| row.name == new.name.as_str()) {
        return if new.describes(row) {
            Ok((lichen_api::Creation::Existing, row.clone()))
        } else {
            Err(NetworkError::Exists(row.name.clone()))
        };
    }
    if present.len() >= MAX_NETWORKS {
        return Err(NetworkError::TooMany);
    }
    let taken6: Vec<_> =
        present.iter().filter_map(|row| Some((row.name.clone(), row.prefix6?))).collect();
    let prefix6 = match new.ipv6 {
        Ipv6Wish::Off => None,
        Ipv6Wish::Prefix(prefix) => {
            ipam::check_prefix6(prefix, &taken6, &routes.v6)?;
            Some(prefix)
        }
        Ipv6Wish::Own => Some(ipam::pick_prefix6(site(tx)?, &taken6)?),
    };
    let taken: Vec<_> = present.into_iter().map(|row| (row.name, row.subnet)).collect();
    let subnet = match new.subnet {
        Some(subnet) => {
            ipam::check_subnet(subnet, &taken, &routes.v4)?;
            subnet
        }
        None => ipam::pick_subnet(&taken, &routes.v4)?,
    };
    let usual = ipam::first_gateway(subnet);
    let gateway = new.gateway.unwrap_or(usual);
    if !subnet.contains(gateway) || gateway == subnet.address() || gateway == subnet.broadcast() {
        return Err(SubnetError::Gateway { gateway, subnet, usual }.into());
    }
    let addresses = Addresses { subnet, gateway, prefix6 };
    insert_row(tx, new, &addresses, now).map(|row| (lichen_api::Creation::New, row))
}

/// Makes the default network in a state without networks; an existing one is never changed.
pub fn ensure_default_network(
    tx: &Transaction<'_>,
    routes: &HostRoutes,
    now: i64,
) -> Result<(), NetworkError> {
    let name = NetworkName::default_network();
    if !networks(tx)?.is_empty() {
        return Ok(());
    }
    let subnet = ipam::default_subnet(&routes.v4);
    let new = NewNetwork {
        name,
        subnet: None,
        gateway: None,
        ipv6: Ipv6Wish::Own,
        internal: false,
        nat64: false,
        labels: BTreeMap::new(),
    };
    let prefix6 = Some(ipam::pick_prefix6(site(tx)?, &[])?);
    let addresses = Addresses { subnet, gateway: ipam::first_gateway(subnet), prefix6 };
    insert_row(tx, &new, &addresses, now).map(drop)
}

/// The 48 bits that all our own prefixes begin with (RFC 4193), chosen when the state was made.
fn site(tx: &Transaction<'_>) -> Result<Ipv6Prefix, NetworkError> {
    let prefix48: String = tx.query_row("SELECT prefix48 FROM site", [], |row| row.get(0))?;
    Ok(format!("{prefix48}::/48").parse().map_err(SubnetError::Site)?)
}

struct Addresses {
    subnet: Ipv4Prefix,
    gateway: Ipv4Addr,
    prefix6: Option<Ipv6Prefix>,
}

fn insert_row(
    tx: &Transaction<'_>,
    new: &NewNetwork,
    addresses: &Addresses,
    now: i64,
) -> Result<NetworkRow, NetworkError> {
    tx.execute(
        "INSERT INTO networks
             (uid, name, subnet, gateway, mtu, internal, labels, created, prefix6, nat64)
         VALUES (lower(hex(randomblob(32))), ?1, ?2, ?3, 1500, ?4, ?5, ?6, ?7, ?8)",
        params![
            new.name.as_str(),
            addresses.subnet.to_string(),
            addresses.gateway.to_string(),
            new.internal,
            serde_json::to_string(&new.labels).expect("a map of strings is JSON"),
            now,
            addresses.prefix6.map(|prefix| prefix.to_string()),
            new.nat64
        ],
    )?;
    network_named(tx, new.name.as_str())
}

/// All networks, oldest first.
pub fn networks(tx: &Transaction<'_>) -> rusqlite::Result<Vec<NetworkRow>> {
    tx.prepare_cached(&format!("SELECT {} FROM networks ORDER BY id", NetworkRow::COLUMNS))?
        .query_map([], NetworkRow::read)?
        .collect()
}

/// The network of that name, else the one whose id begins so.
pub fn network_named(tx: &Transaction<'_>, name: &str) -> Result<NetworkRow, NetworkError> {
    let columns = NetworkRow::COLUMNS;
    let folded = name.to_ascii_lowercase();
    let by_name = tx
        .prepare_cached(&format!("SELECT {columns} FROM networks WHERE name = ?1"))?
        .query_row([&folded], NetworkRow::read)
        .optional()?;
    if let Some(row) = by_name {
        return Ok(row);
    }
    if name.len() < 3 || !folded.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(NetworkError::Unknown(shown(name)));
    }
    let mut rows: Vec<NetworkRow> = tx
        .prepare_cached(&format!(
            "SELECT {columns} FROM networks WHERE substr(uid, 1, length(?1)) = ?1 LIMIT 2"
        ))?
        .query_map([&folded], NetworkRow::read)?
        .collect::<Result<_, _>>()?;
    match (rows.pop(), rows.is_empty()) {
        (Some(row), true) => Ok(row),
        (Some(_), false) => Err(NetworkError::Ambiguous(shown(name))),
        (None, _) => Err(NetworkError::Unknown(shown(name))),
    }
}

/// Whether what uses a network goes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InUse {
    /// Workloads are detached first.
    Detach,
    /// A network in use stays.
    Refuse,
}

/// Removes a network, and with it the rows of its workloads and their ports.
pub fn remove_network(
    tx: &Transaction<'_>,
    name: &str,
    in_use: InUse,
) -> Result<NetworkRow, NetworkError> {
    let row = network_named(tx, name)?;
    if row.name == NetworkName::default_network().as_str() {
        return Err(NetworkError::Default(row.name));
    }
    let users = users(tx, row.id)?;
    if in_use == InUse::Refuse && !users.is_empty() {
        return Err(NetworkError::InUse { name: row.name, users: users.join(", ") });
    }
    tx.execute("DELETE FROM networks WHERE id = ?1", [row.id.0])?;
    Ok(row)
}

/// Removes every network without workloads that is `unwanted`, the default one excepted, and answers their
/// names.
pub fn prune_networks(
    tx: &Transaction<'_>,
    unwanted: impl Fn(&NetworkRow) -> bool,
) -> Result<Vec<String>, NetworkError> {
    let default = NetworkName::default_network();
    let mut removed = Vec::new();
    for row in networks(tx)? {
        if row.name != default.as_str() && unwanted(&row) && users(tx, row.id)?.is_empty() {
            removed.push(remove_network(tx, &row.name, InUse::Refuse)?.name);
        }
    }
    Ok(removed)
}

fn users(tx: &Transaction<'_>, network: NetworkId) -> rusqlite::Result<Vec<String>> {
    tx.prepare_cached("SELECT name FROM workloads WHERE network = ?1 ORDER BY id")?
        .query_map([network.0], |row| row.get(0))?
        .collect()
}

/// A name from outside, safe to print.
fn shown(name: &str) -> String {
    name.chars().take(64).collect::<String>().escape_default().to_string()
}

#[cfg(test)]
mod tests {
    use lichen_api::Creation;

    use super::*;
    use crate::ipam::HostRoute;
    use crate::state::in_memory;

    fn new(name: &str, subnet: Option<&str>) -> NewNetwork {
        NewNetwork {
            name: NetworkName::parse(name).unwrap(),
            subnet: subnet.map(|text| text.parse().unwrap()),
            gateway: None,
            ipv6: Ipv6Wish::Own,
            internal: false,
            nat64: false,
            labels: BTreeMap::new(),
        }
    }

    #[test]
    fn the_default_network_is_made_once_and_never_changed() {
        let mut connection = in_memory();
        let tx = connection.transaction().unwrap();
        ensure_default_network(&tx, &HostRoutes::default(), 0).unwrap();
        let route = HostRoute { prefix: "10.88.0.0/16".parse().unwrap(), interface: "vpn0".into() };
        let routes = HostRoutes { v4: vec![route], v6: vec![] };
        ensure_default_network(&tx, &routes, 0).unwrap();
        let rows = networks(&tx).unwrap();
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].subnet.to_string(), "10.88.0.0/16");
        assert_eq!(rows[0].gateway.to_string(), "10.88.0.1");
        assert_eq!(rows[0].uid.len(), 64);
        assert_eq!(rows[0].created, "1970-01-01T00:00:00Z");
        assert!(matches!(
            remove_network(&tx, "bridge", InUse::Detach),
            Err(NetworkError::Default(_))
        ));
    }

    #[test]
    fn making_a_network_again_is_fine_and_making_another_under_its_name_is_not() {
        let mut connection = in_memory();
        let tx = connection.transaction().unwrap();
        let (creation, row) =
            insert_network(&tx, &new("mynet", None), &HostRoutes::default(), 0).unwrap();
        assert_eq!((creation, row.subnet.to_string().as_str()), (Creation::New, "10.89.0.0/16"));
        let again = insert_network(&tx, &new("mynet", None), &HostRoutes::default(), 9).unwrap();
        assert_eq!(again, (Creation::Existing, row));
        let other =
            insert_network(&tx, &new("mynet", Some("10.99.0.0/16")), &HostRoutes::default(), 9);
        assert!(matches!(other, Err(NetworkError::Exists(_))));
        let with_nat64 = NewNetwork { nat64: true, ..new("mynet", None) };
        let other = insert_network(&tx, &with_nat64, &HostRoutes::default(), 9);
        assert!(matches!(other, Err(NetworkError::Exists(_))));
        let six = NewNetwork { nat64: true, ..new("six", None) };
        insert_network(&tx, &six, &HostRoutes::default(), 0).unwrap();
        assert!(network_named(&tx, "six").unwrap().nat64);
        assert!(!network_named(&tx, "mynet").unwrap().nat64);
    }

    #[test]
    fn a_gateway_must_be_a_usable_address_of_its_subnet() {
        let mut connection = in_memory();
        let tx = connection.transaction().unwrap();
        for gateway in ["10.99.0.0", "10.99.255.255", "10.98.0.1"] {
            let mut wanted = new("mynet", Some("10.99.0.0/16"));
            wanted.gateway = Some(gateway.parse().unwrap());
            let error = insert_network(&tx, &wanted, &HostRoutes::default(), 0).unwrap_err();
            assert!(error.to_string().contains("the usual one is 10.99.0.1"), "{error}");
        }
    }

    #[test]
    fn a_network_is_found_by_name_or_by_the_beginning_of_its_id() {
        let mut connection = in_memory();
        let tx = connection.transaction().unwrap();
        let (_, row) = insert_network(&tx, &new("mynet", None), &HostRoutes::default(), 0).unwrap();
        assert_eq!(network_named(&tx, "MyNet").unwrap().id, row.id);
        assert_eq!(network_named(&tx, &row.uid[..12]).unwrap().id, row.id);
        for unknown in ["", "my", "%", "zzz", "../x"] {
            assert!(matches!(network_named(&tx, unknown), Err(NetworkError::Unknown(_))));
        }
    }

    #[test]
    fn every_network_has_a_prefix_of_one_site_unless_it_wants_another_or_none() {
        let mut connection = in_memory();
        let tx = connection.transaction().unwrap();
        let routes = HostRoutes::default();
        ensure_default_network(&tx, &routes, 0).unwrap();
        let (_, own) = insert_network(&tx, &new("own", None), &routes, 0).unwrap();
        let bridge = network_named(&tx, "bridge").unwrap();
        let site = |row: &NetworkRow| row.prefix6.unwrap().address().segments()[..3].to_vec();
        assert_eq!(site(&own), site(&bridge));
        assert!(site(&own)[0] >> 8 == 0xfd);
        assert_ne!(own.prefix6, bridge.prefix6);
        let chosen = "2001:db8:0:7::/64".parse().unwrap();
        let wish = |ipv6, name| NewNetwork { ipv6, ..new(name, None) };
        let (_, row) =
            insert_network(&tx, &wish(Ipv6Wish::Prefix(chosen), "chosen"), &routes, 0).unwrap();
        assert_eq!(row.prefix6, Some(chosen));
        let twice = insert_network(&tx, &wish(Ipv6Wish::Prefix(chosen), "twice"), &routes, 0);
        assert!(twice.unwrap_err().to_string().contains("network `chosen`"));
        let (_, row) = insert_network(&tx, &wish(Ipv6Wish::Off, "off"), &routes, 0).unwrap();
        assert_eq!(row.prefix6, None);
        let (creation, _) = insert_network(&tx, &wish(Ipv6Wish::Off, "off"), &routes, 0).unwrap();
        assert_eq!(creation, Creation::Existing);
    }
}
