//! The rows of published ports.

use std::net::{IpAddr, SocketAddr};

use lichen_api::{PortRange, Source, Transport};
use lichen_netstack::ids::PortId;
use rusqlite::{Transaction, params};

use super::rows::PortRow;
use crate::names::WorkloadName;

/// Most published ports: each is a descriptor in control and one in the datapath.
const MAX_PORTS: usize = 512;

/// Why a port cannot be published or taken back.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// Ours already, for something else.
    #[error(
        "port {wanted}/{protocol} is published already: {present} leads to {target}; see: lichen port ls"
    )]
    Taken {
        /// What was asked for.
        wanted: SocketAddr,
        /// Its transport.
        protocol: Transport,
        /// What is in the way.
        present: SocketAddr,
        /// Where that leads.
        target: String,
    },
    /// There is none.
    #[error("port {0} is not published; see: lichen port ls")]
    Unknown(String),
    /// There is none with that transport.
    #[error("port {0} is not published, but {1} is; take that back with: lichen port rm {1}")]
    OtherTransport(String, String),
    /// It ends with its workload.
    #[error(
        "port {host} was published together with workload `{workload}` and ends with it; \
         to take it back now, run the workload again without -p"
    )]
    OfWorkload {
        /// Which port.
        host: SocketAddr,
        /// Whose.
        workload: String,
    },
    /// Too many.
    #[error("at most {MAX_PORTS} ports can be published at once; take back some: lichen port rm")]
    TooMany,
    /// The database.
    #[error("the state could not be written")]
    Database(#[from] rusqlite::Error),
}

/// Where a published port leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortTarget {
    /// Name of the workload.
    pub name: WorkloadName,
    /// The workload it ends with; `None` for `port add`.
    pub ends_with: Option<PortId>,
}

/// One port to publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewPort {
    /// Where it listens.
    pub host: SocketAddr,
    /// The port in the workload.
    pub target_port: u16,
    /// Which transport.
    pub protocol: Transport,
    /// Which source address the workload sees.
    pub source: Source,
}

/// Publishes ports, all of them or none, and answers their rows in order. One that is there exactly so
/// is answered as it is.
pub fn insert_ports(
    tx: &Transaction<'_>,
    target: &PortTarget,
    new: &[NewPort],
) -> Result<Vec<PortRow>, PortError> {
    for port in new {
        insert_port(tx, target, *port)?;
    }
    let present = ports(tx)?;
    if present.len() > MAX_PORTS {
        return Err(PortError::TooMany);
    }
    let is_it = |row: &PortRow, new: &NewPort| (row.host, row.protocol) == (new.host, new.protocol);
    let row = |port: &NewPort| present.iter().find(|row| is_it(row, port)).cloned();
    Ok(new.iter().filter_map(row).collect())
}

fn insert_port(tx: &Transaction<'_>, target: &PortTarget, new: NewPort) -> Result<(), PortError> {
    let clashes = |row: &PortRow| row.protocol == new.protocol && clash(row.host, new.host);
    if let Some(row) = ports(tx)?.into_iter().find(clashes) {
        let same = row.host == new.host
            && row.target == target.name.as_str()
            && row.target_port == new.target_port
            && row.source == new.source
            && row.workload == target.ends_with;
        return if same {
            Ok(())
        } else {
            Err(PortError::Taken {
                wanted: new.host,
                protocol: new.protocol,
                present: row.host,
                target: format!("{}:{}", row.target, row.target_port),
            })
        };
    }
    tx.execute(
        "INSERT INTO ports (host_ip, host_port, target, target_port, source, workload, protocol)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        params![
            new.host.ip().to_string(),
            new.host.port(),
            target.name.as_str(),
            new.target_port,
            match new.source {
                Source::Client => "client",
                Source::Gateway => "gateway",
            },
            target.ends_with.map(|id| id.0),
            new.protocol.to_string()
        ],
    )?;
    Ok(())
}

/// Whether the two cannot both listen: the same number on one address, or on one and on all of its family.
fn clash(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() == b.port()
        && a.is_ipv4() == b.is_ipv4()
        && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
}

/// Which published ports a request means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortSelector {
    /// On this address of the host, or on any.
    pub host_ip: Option<IpAddr>,
    /// These numbers.
    pub range: PortRange,
    /// Of this transport.
    pub protocol: Transport,
}

impl PortSelector {
    fn matches(&self, row: &PortRow) -> bool {
        self.protocol == row.protocol
            && (self.range.start..=self.range.end).contains(&row.host.port())
            && self.host_ip.is_none_or(|ip| ip == row.host.ip())
    }

    /// As it is typed.
    fn shown(&self) -> String {
        let port = match self.host_ip {
            Some(ip) => SocketAddr::new(ip, self.range.start).to_string(),
            None => self.range.start.to_string(),
        };
        format!("{port}/{}", self.protocol)
    }
}

/// Takes back the ports that `port add` published, and answers their rows.
pub fn remove_ports(
    tx: &Transaction<'_>,
    selector: PortSelector,
) -> Result<Vec<PortRow>, PortError> {
    let all = ports(tx)?;
    let rows: Vec<PortRow> = all.iter().filter(|row| selector.matches(row)).cloned().collect();
    if rows.is_empty() {
        let other = match selector.protocol {
            Transport::Tcp => Transport::Udp,
            Transport::Udp => Transport::Tcp,
        };
        let other = PortSelector { protocol: other, ..selector };
        return Err(if all.iter().any(|row| other.matches(row)) {
            PortError::OtherTransport(selector.shown(), other.shown())
        } else {
            PortError::Unknown(selector.shown())
        });
    }
    for row in &rows {
        if row.workload.is_some() {
            return Err(PortError::OfWorkload { host: row.host, workload: row.target.clone() });
        }
        tx.execute("DELETE FROM ports WHERE id = ?1", [row.id.0])?;
    }
    Ok(rows)
}

/// All published ports, oldest first.
pub fn ports(tx: &Transaction<'_>) -> rusqlite::Result<Vec<PortRow>> {
    tx.prepare_cached(&format!("SELECT {} FROM ports ORDER BY id", PortRow::COLUMNS))?
        .query_map([], PortRow::read)?
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::in_memory;

    fn target(name: &str) -> PortTarget {
        PortTarget { name: WorkloadName::parse(name).unwrap(), ends_with: None }
    }

    fn port(host: &str) -> NewPort {
        NewPort {
            host: host.parse().unwrap(),
            target_port: 80,
            protocol: Transport::Tcp,
            source: Source::Client,
        }
    }

    #[test]
    fn publishing_twice_is_publishing_once() {
        let mut connection = in_memory();
        let tx = connection.transaction().unwrap();
        let first = insert_ports(&tx, &target("web"), &[port("127.0.0.1:8080")]).unwrap();
        let again = insert_ports(&tx, &target("web"), &[port("127.0.0.1:8080")]).unwrap();
        assert_eq!(first, again);
        assert_eq!(ports(&tx).unwrap().len(), 1);
    }

    #[test]
    fn a_port_that_leads_elsewhere_is_refused_and_named() {
        let mut connection = in_memory();
        let tx = connection.transaction().unwrap();
        insert_ports(&tx, &target("web"), &[port("127.0.0.1:8080")]).unwrap();
        for host in ["127.0.0.1:8080", "0.0.0.0:8080"] {
            let error = insert_ports(&tx, &target("db"), &[port(host)]).unwrap_err();
            assert!(error.to_string().contains("leads to web:80"), "{error}");
        }
        insert_ports(&tx, &target("db"), &[port("127.0.0.2:8080"), port("[::1]:8080")]).unwrap();
    }

    #[test]
    fn a_port_is_taken_back_by_its_number() {
        let mut connection = in_memory();
        let tx = connection.transaction().unwrap();
        insert_ports(&tx, &target("web"), &[port("127.0.0.1:80"), port("127.0.0.2:80")]).unwrap();
        let tcp =
            PortSelector { host_ip: None, range: PortRange::one(80), protocol: Transport::Tcp };
        let second = PortSelector { host_ip: Some("127.0.0.2".parse().unwrap()), ..tcp };
        assert_eq!(remove_ports(&tx, second).unwrap().len(), 1);
        assert_eq!(remove_ports(&tx, tcp).unwrap().len(), 1);
        assert!(matches!(remove_ports(&tx, tcp), Err(PortError::Unknown(_))));
    }

    #[test]
    fn a_number_is_taken_once_for_each_transport() {
        let mut connection = in_memory();
        let tx = connection.transaction().unwrap();
        let udp = NewPort { protocol: Transport::Udp, ..port("127.0.0.1:53") };
        insert_ports(&tx, &target("names"), &[port("127.0.0.1:53"), udp]).unwrap();
        assert!(insert_ports(&tx, &target("other"), &[udp]).is_err());
        let selector =
            |protocol| PortSelector { host_ip: None, range: PortRange::one(53), protocol };
        let removed = remove_ports(&tx, selector(Transport::Tcp)).unwrap();
        assert_eq!((removed.len(), removed[0].protocol), (1, Transport::Tcp));
        let error = remove_ports(&tx, selector(Transport::Tcp)).unwrap_err().to_string();
        assert!(error.contains("lichen port rm 53/udp"), "{error}");
    }
}
