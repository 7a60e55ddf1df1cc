//! The rows of workloads, and the addresses they hold.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use lichen_api::{AllowedPort, WorkloadKind};
use lichen_netstack::ids::{MacAddr, NetworkId, PortId};
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
    /// `None` makes one up.
    pub name: Option<WorkloadName>,
    /// Name or id of its network.
    pub network: String,
    /// How it comes.
    pub kind: WorkloadKind,
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
    let address = take_address(tx, &network, &name, now)?;
    tx.execute(
        "INSERT INTO workloads
             (uid, name, kind, network, address, mac, allow_host, resolv_conf, boot_id, created)
         VALUES (lower(hex(randomblob(32))), ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        params![
            name.as_str(),
            match new.kind {
                WorkloadKind::Run => "run",
                WorkloadKind::Attach => "attach",
            },
            network.id.0,
            address.to_string(),
            MacAddr::for_ipv4(address).to_string(),
            serde_json::to_string(&new.allow_host).expect("numbers and words are JSON"),
            new.resolv_conf,
            new.boot_id,
            now
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
    if let Some(other) = workload_in(tx, process.netns)? {
        return Err(WorkloadError::Netns(other));
    }
    tx.execute(
        "UPDATE workloads SET pid = ?2, start_time = ?3, netns_dev = ?4, netns_ino = ?5 WHERE id = ?1",
        params![
            row.id.0,
            process.pid,
            signed(process.start_time),
            signed(process.netns.dev),
            signed(process.netns.ino)
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

/// SQLite's integers are signed; kernel numbers stay far below the sign.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{ensure_default_network, in_memory, insert_network};

    fn new(name: &str) -> NewWorkload {
        NewWorkload {
            name: Some(WorkloadName::parse(name).unwrap()),
            network: "bridge".into(),
            kind: WorkloadKind::Run,
            allow_host: Vec::new(),
            resolv_conf: false,
            boot_id: "boot".into(),
        }
    }

    fn process(pid: i32) -> Process {
        let ino = u64::try_from(pid).unwrap();
        Process { pid, start_time: 7, netns: Identity { dev: 4, ino } }
    }

    #[test]
    fn an_address_stays_with_its_name_for_ten_minutes_and_then_is_free() {
        let mut connection = in_memory();
        let tx = connection.transaction().unwrap();
        ensure_default_network(&tx, &[], 0).unwrap();
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
            internal: false,
            labels: Default::default(),
        };
        insert_network(&tx, &small, &[], 0).unwrap();
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
        ensure_default_network(&tx, &[], 0).unwrap();
        insert_workload(&tx, &new("web"), 0).unwrap();
        insert_workload(&tx, &new("db"), 0).unwrap();
        let row = attach_workload(&tx, "web", process(10)).unwrap();
        assert_eq!(attach_workload(&tx, "web", process(10)).unwrap(), row);
        assert!(matches!(
            attach_workload(&tx, "web", process(11)),
            Err(WorkloadError::Attached(_))
        ));
        assert!(matches!(attach_workload(&tx, "db", process(10)), Err(WorkloadError::Netns(_))));
        assert!(is_workload_netns(&tx, process(10).netns).unwrap());
    }

    #[test]
    fn a_declined_address_is_replaced_and_its_mac_stays_without_draining_the_pool() {
        let mut connection = in_memory();
        let tx = connection.transaction().unwrap();
        ensure_default_network(&tx, &[], 0).unwrap();
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
        ensure_default_network(&tx, &[], 0).unwrap();
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
        ensure_default_network(&tx, &[], 0).unwrap();
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
