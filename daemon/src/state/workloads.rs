//! The rows of workloads, and the addresses they hold.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use lichen_api::{AllowedPort, VmAttachment, WorkloadKind};
use lichen_netstack::ids::{Ipv4Prefix, MacAddr, NetworkId, PortId};
use rusqlite::{OptionalExtension, Transaction, params};

use super::networks::{NetworkError, network_named, networks};
use super::rows::{Identity, NetworkRow, Process, WorkloadRow};
use crate::ipam;
use crate::names::WorkloadName;

/// How long an address stays with the name that had it, in seconds.
const RESERVED_FOR: i64 = 600;

/// Why a workload cannot be made, attached or removed.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    /// Its name is taken.
    #[error("workload `{0}` exists already; choose another name, or remove it: lichen rm -f {0}")]
    Exists(String),
    /// There is none.
    #[error("there is no workload `{0}`; see: lichen ps")]
    Unknown(String),
    /// It has a process already.
    #[error("workload `{0}` is attached already, to another process")]
    Attached(String),
    /// One interface for each namespace.
    #[error("that network namespace is attached already, as workload `{0}`")]
    Netns(String),
    /// No address is left.
    #[error("network `{0}` has no free address left; use another network, or remove workloads")]
    Full(String),
    /// An address that the network cannot give.
    #[error(
        "{address} is no address for a workload of network `{network}`; choose one in {subnet}, not its first, \
         its last or the gateway's"
    )]
    NotAssignable {
        /// What was asked for.
        address: Ipv4Addr,
        /// Name of the network.
        network: String,
        /// Its addresses.
        subnet: Ipv4Prefix,
    },
    /// Somebody has it.
    #[error("{address} is workload `{owner}`'s; choose another, or leave out the address")]
    AddressTaken {
        /// What was asked for.
        address: Ipv4Addr,
        /// Who has it.
        owner: String,
    },
    /// No Ethernet address of a single machine.
    #[error(
        "{0} cannot be a workload's MAC address; use a unicast one that is not the gateway's, \
         such as 02:00:00:00:00:01"
    )]
    InvalidMac(MacAddr),
    /// Somebody has it.
    #[error("MAC address {mac} is workload `{owner}`'s; choose another, or leave it out")]
    MacTaken {
        /// What was asked for.
        mac: MacAddr,
        /// Who has it.
        owner: String,
    },
    /// Its network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The database.
    #[error("the state could not be written")]
    Database(#[from] rusqlite::Error),
}

/// A workload to make.
#[derive(Clone, Debug)]
pub struct NewWorkload {
    /// 64 hexadecimal digits; `None` makes them up.
    pub uid: Option<String>,
    /// `None` makes one up.
    pub name: Option<WorkloadName>,
    /// Name or id of its network.
    pub network: String,
    /// How it comes.
    pub kind: WorkloadKind,
    /// What its monitor speaks; `None` for other kinds.
    pub attachment: Option<VmAttachment>,
    /// Queues of its interface, at least one.
    pub queues: u16,
    /// Its address; `None` gives the lowest free one.
    pub address: Option<Ipv4Addr>,
    /// Its Ethernet address; `None` derives it from the address.
    pub mac: Option<MacAddr>,
    /// What of the host's loopback it may reach.
    pub allow_host: Vec<AllowedPort>,
    /// Whether its own resolv.conf is written.
    pub resolv_conf: bool,
    /// Which boot of the host this is.
    pub boot_id: String,
}

/// Reserves a name and an address for a workload that has no process yet.
pub fn insert_workload(
    tx: &Transaction<'_>,
    new: &NewWorkload,
    now: i64,
) -> Result<(NetworkRow, WorkloadRow), WorkloadError> {
    let network = network_named(tx, &new.network)?;
    let name = match &new.name {
        Some(name) => name.clone(),
        None => {
            let random: String =
                tx.query_row("SELECT lower(hex(randomblob(4)))", [], |row| row.get(0))?;
            WorkloadName::made_up(&random)
        }
    };
    match workload_named(tx, name.as_str()) {
        Ok(row) => return Err(WorkloadError::Exists(row.name)),
        Err(WorkloadError::Unknown(_)) => {}
        Err(error) => return Err(error),
    }
    let address = match new.address {
        Some(address) => take_this_address(tx, &network, address)?,
        None => take_address(tx, &network, &name, now)?,
    };
    let mac = new.mac.unwrap_or_else(|| MacAddr::for_ipv4(address));
    check_mac(tx, &network, mac)?;
    tx.execute(
        "INSERT INTO workloads
             (uid, name, kind, network, address, mac, allow_host, resolv_conf, boot_id, created, attachment, queues)
         VALUES (coalesce(?11, lower(hex(randomblob(32)))), ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?12)",
        params![
            name.as_str(),
            match new.kind {
                WorkloadKind::Run => "run",
                WorkloadKind::Attach => "attach",
                WorkloadKind::Vm => "vm",
            },
            network.id.0,
            address.to_string(),
            mac.to_string(),
            serde_json::to_string(&new.allow_host).expect("numbers and words are JSON"),
            new.resolv_conf,
            new.boot_id,
            now,
            new.attachment.map(VmAttachment::name),
            new.uid,
            new.queues
        ],
    )?;
    Ok((network, workload_named(tx, name.as_str())?))
}

/// The address that the name had lately, else the lowest that nobody has or had lately, else the one
/// whose time would be over first.
fn take_address(
    tx: &Transaction<'_>,
    network: &NetworkRow,
    name: &WorkloadName,
    now: i64,
) -> Result<Ipv4Addr, WorkloadError> {
    tx.execute("DELETE FROM reservations WHERE expires <= ?1", [now])?;
    let kept: Option<String> = tx
        .query_row(
            "DELETE FROM reservations WHERE network = ?1 AND name = ?2 RETURNING address",
            params![network.id.0, name.as_str()],
            |row| row.get(0),
        )
        .optional()?;
    if let Some(address) = kept.and_then(|text| text.parse().ok()) {
        return Ok(address);
    }
    let taken = taken_addresses(tx, network.id)?;
    if let Some(address) = ipam::lowest_free(network.subnet, network.gateway, &taken) {
        return Ok(address);
    }
    let oldest: Option<String> = tx
        .query_row(
            "DELETE FROM reservations WHERE (network, name) IN
                 (SELECT network, name FROM reservations WHERE network = ?1 ORDER BY expires LIMIT 1)
             RETURNING address",
            [network.id.0],
            |row| row.get(0),
        )
        .optional()?;
    oldest
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| WorkloadError::Full(network.name.clone()))
}

/// An address that was asked for. One that is only kept for a name that is gone is given away.
fn take_this_address(
    tx: &Transaction<'_>,
    network: &NetworkRow,
    address: Ipv4Addr,
) -> Result<Ipv4Addr, WorkloadError> {
    if !ipam::is_assignable(network.subnet, network.gateway, address) {
        let (network, subnet) = (network.name.clone(), network.subnet);
        return Err(WorkloadError::NotAssignable { address, network, subnet });
    }
    if let Some(owner) = column_owner(tx, "address", network, &address.to_string())? {
        return Err(WorkloadError::AddressTaken { address, owner });
    }
    tx.execute(
        "DELETE FROM reservations WHERE network = ?1 AND address = ?2",
        params![network.id.0, address.to_string()],
    )?;
    Ok(address)
}

/// An Ethernet address must be a single machine's, and nobody else's on the network.
fn check_mac(
    tx: &Transaction<'_>,
    network: &NetworkRow,
    mac: MacAddr,
) -> Result<(), WorkloadError> {
    if mac.is_multicast() || mac.0 == [0; 6] || mac == MacAddr::for_ipv4(network.gateway) {
        return Err(WorkloadError::InvalidMac(mac));
    }
    match column_owner(tx, "mac", network, &mac.to_string())? {
        Some(owner) => Err(WorkloadError::MacTaken { mac, owner }),
        None => Ok(()),
    }
}

fn column_owner(
    tx: &Transaction<'_>,
    column: &'static str,
    network: &NetworkRow,
    value: &str,
) -> rusqlite::Result<Option<String>> {
    tx.prepare_cached(&format!("SELECT name FROM workloads WHERE network = ?1 AND {column} = ?2"))?
        .query_row(params![network.id.0, value], |row| row.get(0))
        .optional()
}

/// Addresses that workloads have, or had lately. One that was declined counts for as long as its MAC is in
/// use, since whoever is given an address is given its MAC.
fn taken_addresses(
    tx: &Transaction<'_>,
    network: NetworkId,
) -> Result<BTreeSet<Ipv4Addr>, rusqlite::Error> {
    let mut taken = BTreeSet::new();
    let mut rows = tx.prepare_cached(
        "SELECT address, mac FROM workloads WHERE network = ?1
         UNION SELECT address, NULL FROM reservations WHERE network = ?1",
    )?;
    let mut rows = rows.query([network.0])?;
    while let Some(row) = rows.next()? {
        taken.extend(row.get::<_, String>(0)?.parse::<Ipv4Addr>());
        let mac = row.get::<_, Option<String>>(1)?.and_then(|text| text.parse::<MacAddr>().ok());
        taken.extend(mac.and_then(MacAddr::to_ipv4));
    }
    Ok(taken)
}

/// Gives a workload another address, because it has declined the one that it has; its MAC stays. `None`
/// when it has another already, or is gone. The pool cannot be drained so: the declined address is free
/// again for others, except where its MAC is in use.
pub fn readdress_workload(
    tx: &Transaction<'_>,
    id: PortId,
    declined: Ipv4Addr,
) -> Result<Option<Ipv4Addr>, WorkloadError> {
    let declining = workloads(tx)?.into_iter().find(|row| row.id == id && row.address == declined);
    let Some(row) = declining else { return Ok(None) };
    let network = networks(tx)?
        .into_iter()
        .find(|network| network.id == row.network)
        .expect("a workload's network is kept by a foreign key");
    let taken = taken_addresses(tx, network.id)?;
    let address = ipam::lowest_free(network.subnet, network.gateway, &taken)
        .ok_or(WorkloadError::Full(network.name))?;
    tx.execute(
        "UPDATE workloads SET address = ?2 WHERE id = ?1",
        params![id.0, address.to_string()],
    )?;
    Ok(Some(address))
}

/// Gives a workload its process. Saying the same again is fine.
pub fn attach_workload(
    tx: &Transaction<'_>,
    name: &str,
    process: Process,
) -> Result<WorkloadRow, WorkloadError> {
    let row = workload_named(tx, name)?;
    match row.process {
        Some(present) if present == process => return Ok(row),
        Some(_) => return Err(WorkloadError::Attached(row.name)),
        None => {}
    }
    if let Some(netns) = process.netns
        && let Some(other) = workload_in(tx, netns)?
    {
        return Err(WorkloadError::Netns(other));
    }
    tx.execute(
        "UPDATE workloads SET pid = ?2, start_time = ?3, netns_dev = ?4, netns_ino = ?5 WHERE id = ?1",
        params![
            row.id.0,
            process.pid,
            signed(process.start_time),
            process.netns.map(|netns| signed(netns.dev)),
            process.netns.map(|netns| signed(netns.ino))
        ],
    )?;
    workload_named(tx, name)
}

/// Ends a workload: its row and its own ports go, its address stays with its name for a while.
/// Answers false when there was none.
pub fn end_workload(tx: &Transaction<'_>, id: PortId, now: i64) -> rusqlite::Result<bool> {
    tx.execute(
        "INSERT OR REPLACE INTO reservations (network, name, address, expires)
         SELECT network, name, address, ?2 FROM workloads WHERE id = ?1",
        params![id.0, now + RESERVED_FOR],
    )?;
    Ok(tx.execute("DELETE FROM workloads WHERE id = ?1", [id.0])? > 0)
}

/// Whether that network namespace is a workload's.
pub fn is_workload_netns(tx: &Transaction<'_>, netns: Identity) -> rusqlite::Result<bool> {
    workload_in(tx, netns).map(|name| name.is_some())
}

fn workload_in(tx: &Transaction<'_>, netns: Identity) -> rusqlite::Result<Option<String>> {
    tx.prepare_cached("SELECT name FROM workloads WHERE netns_dev = ?1 AND netns_ino = ?2")?
        .query_row(params![signed(netns.dev), signed(netns.ino)], |row| row.get(0))
        .optional()
}

/// All workloads, oldest first.
pub fn workloads(tx: &Transaction<'_>) -> rusqlite::Result<Vec<WorkloadRow>> {
    tx.prepare_cached(&format!("SELECT {} FROM workloads ORDER BY id", WorkloadRow::COLUMNS))?
        .query_map([], WorkloadRow::read)?
        .collect()
}

/// The workload of that name.
pub fn workload_named(tx: &Transaction<'_>, name: &str) -> Result<WorkloadRow, WorkloadError> {
    tx.prepare_cached(&format!("SELECT {} FROM workloads WHERE name = ?1", WorkloadRow::COLUMNS))?
        .query_row([name.to_ascii_lowercase()], WorkloadRow::read)
        .optional()?
        .ok_or_else(|| {
            WorkloadError::Unknown(
                name.chars().take(64).collect::<String>().escape_default().to_string(),
            )
        })
}

/// The workload with that id, if there is one.
pub fn workload_with_uid(tx: &Transaction<'_>, uid: &str) -> rusqlite::Result<Option<WorkloadRow>> {
    tx.prepare_cached(&format!("SELECT {} FROM workloads WHERE uid = ?1", WorkloadRow::COLUMNS))?
        .query_row([uid], WorkloadRow::read)
        .optional()
}

/// SQLite's integers are signed; kernel numbers stay far below the sign.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{ensure_default_network, in_memory, insert_network, new_workload as new};

    fn process(pid: i32) -> Process {
        let ino = u64::try_from(pid).unwrap();
        Process { pid, start_time: 7, netns: Some(Identity { dev: 4, ino }) }
    }

    #[test]
    fn an_address_stays_with_its_name_for_ten_minutes_and_then_is_free() {
        let mut connection = in_memory();
        let tx = connection.transaction().unwrap();
        ensure_default_network(&tx, &Default::default(), 0).unwrap();
        let (_, web) = insert_workload(&tx, &new("web"), 0).unwrap();
        assert_eq!(web.address.to_string(), "10.88.0.2");
        assert_eq!(web.mac.to_string(), "02:4c:0a:58:00:02");
        assert!(end_workload(&tx, web.id, 100).unwrap());
        let (_, other) = insert_workload(&tx, &new("other"), 101).unwrap();
        assert_eq!(other.address.to_string(), "10.88.0.3");
        let (_, again) = insert_workload(&tx, &new("web"), 102).unwrap();
        assert_eq!(again.address, web.address);
        assert!(again.id > web.id, "numbers are never used twice");
        end_workload(&tx, again.id, 200).unwrap();
        let (_, third) = insert_workload(&tx, &new("third"), 800).unwrap();
        assert_eq!(third.address, web.address);
    }

    #[test]
    fn a_small_network_takes_the_oldest_reservation_rather_than_refuse() {
        let mut connection = in_memory();
        let tx = connection.transaction().unwrap();
        let small = crate::state::NewNetwork {
            name: crate::names::NetworkName::parse("small").unwrap(),
            subnet: Some("10.99.0.0/30".parse().unwrap()),
            gateway: None,
            ipv6: Default::default(),
            internal: false,
            nat64: false,
            labels: Default::default(),
        };
        insert_network(&tx, &small, &Default::default(), 0).unwrap();
        let on_small = |name| NewWorkload { network: "small".into(), ..new(name) };
        let (_, a) = insert_workload(&tx, &on_small("a"), 0).unwrap();
        assert!(matches!(insert_workload(&tx, &on_small("b"), 0), Err(WorkloadError::Full(_))));
        end_workload(&tx, a.id, 1).unwrap();
        assert_eq!(insert_workload(&tx, &on_small("b"), 2).unwrap().1.address, a.address);
    }

    #[test]
    fn attaching_twice_is_attaching_once_and_another_process_is_refused() {
        let mut connection = in_memory();
        let tx = connection.transaction().unwrap();
        ensure_default_network(&tx, &Default::default(), 0).unwrap();
        insert_workload(&tx, &new("web"), 0).unwrap();
        insert_workload(&tx, &new("db"), 0).unwrap();
        let row = attach_workload(&tx, "web", process(10)).unwrap();
        assert_eq!(attach_workload(&tx, "web", process(10)).unwrap(), row);
        assert!(matches!(
            attach_workload(&tx, "web", process(11)),
            Err(WorkloadError::Attached(_))
        ));
        assert!(matches!(attach_workload(&tx, "db", process(10)), Err(WorkloadError::Netns(_))));
        assert!(is_workload_netns(&tx, process(10).netns.unwrap()).unwrap());
    }

    #[test]
    fn an_address_and_a_mac_can_be_asked_for_and_are_refused_with_the_owner() {
        let mut connection = in_memory();
        let tx = connection.transaction().unwrap();
        ensure_default_network(&tx, &Default::default(), 0).unwrap();
        let asked = |name, address: Option<&str>, mac: Option<[u8; 6]>| NewWorkload {
            kind: WorkloadKind::Vm,
            address: address.map(|text| text.parse().unwrap()),
            mac: mac.map(MacAddr),
            ..new(name)
        };
        let own = [0x52, 0x54, 0, 0, 0, 1];
        let (_, db) = insert_workload(&tx, &asked("db", Some("10.88.7.7"), Some(own)), 0).unwrap();
        assert_eq!((db.address.to_string().as_str(), db.mac.0), ("10.88.7.7", own));
        assert!(db.is_placed() && db.process.is_none());
        for address in ["10.88.0.0", "10.88.0.1", "10.88.255.255", "10.89.0.2", "127.0.0.1"] {
            let refused = insert_workload(&tx, &asked("x", Some(address), None), 0).unwrap_err();
            assert!(matches!(refused, WorkloadError::NotAssignable { .. }), "{address}: {refused}");
        }
        let refused = insert_workload(&tx, &asked("x", Some("10.88.7.7"), None), 0).unwrap_err();
        assert!(refused.to_string().contains("workload `db`"), "{refused}");
        let refused = insert_workload(&tx, &asked("x", None, Some(own)), 0).unwrap_err();
        assert!(refused.to_string().contains("workload `db`"), "{refused}");
        for mac in [[0; 6], [0xff; 6], [1, 0, 0x5e, 0, 0, 1], [2, 0x4c, 10, 88, 0, 1]] {
            let refused = insert_workload(&tx, &asked("x", None, Some(mac)), 0).unwrap_err();
            assert!(matches!(refused, WorkloadError::InvalidMac(_)), "{refused}");
        }
    }

    #[test]
    fn a_declined_address_is_replaced_and_its_mac_stays_without_draining_the_pool() {
        let mut connection = in_memory();
        let tx = connection.transaction().unwrap();
        ensure_default_network(&tx, &Default::default(), 0).unwrap();
        let (_, web) = insert_workload(&tx, &new("web"), 0).unwrap();
        let moved = readdress_workload(&tx, web.id, web.address).unwrap().unwrap();
        assert_eq!(moved, Ipv4Addr::new(10, 88, 0, 3));
        assert_eq!(readdress_workload(&tx, web.id, web.address).unwrap(), None, "said twice");
        assert_eq!(readdress_workload(&tx, PortId(99), moved).unwrap(), None);
        let row = workload_named(&tx, "web").unwrap();
        assert_eq!((row.address, row.mac), (moved, web.mac));
        // The address that the MAC came from is nobody's while the MAC is in use.
        let (_, next) = insert_workload(&tx, &new("next"), 0).unwrap();
        assert_eq!(next.address, Ipv4Addr::new(10, 88, 0, 4));
        let mut address = moved;
        for _ in 0..100 {
            address = readdress_workload(&tx, web.id, address).unwrap().unwrap();
        }
        let (_, last) = insert_workload(&tx, &new("last"), 0).unwrap();
        assert!(last.address <= Ipv4Addr::new(10, 88, 0, 6), "{}", last.address);
    }

    #[test]
    fn a_name_is_given_once() {
        let mut connection = in_memory();
        let tx = connection.transaction().unwrap();
        ensure_default_network(&tx, &Default::default(), 0).unwrap();
        insert_workload(&tx, &new("web"), 0).unwrap();
        assert!(matches!(insert_workload(&tx, &new("WEB"), 0), Err(WorkloadError::Exists(_))));
        let unnamed = NewWorkload { name: None, ..new("x") };
        let (_, row) = insert_workload(&tx, &unnamed, 0).unwrap();
        assert!(row.name.starts_with("run-") && row.name.len() == 12, "{}", row.name);
    }

    #[test]
    fn ten_thousand_lives_leave_no_rows_behind() {
        let mut connection = in_memory();
        let tx = connection.transaction().unwrap();
        ensure_default_network(&tx, &Default::default(), 0).unwrap();
        for round in 0..10_000 {
            let (_, row) = insert_workload(&tx, &new(&format!("w{}", round % 50)), round).unwrap();
            end_workload(&tx, row.id, round).unwrap();
        }
        let rows: u32 = tx
            .query_row(
                "SELECT (SELECT count(*) FROM workloads) + (SELECT count(*) FROM reservations)",
                [],
                |row| row.get(0),
            )
            .unwrap();
        assert!(rows <= 50, "{rows}");
    }
}
