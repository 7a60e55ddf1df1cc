//! What the tables hold, read as what it means.

use std::collections::BTreeMap;
use std::error::Error;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use lichen_api::{AllowedPort, Source, Transport, VmAttachment, WorkloadKind};
use lichen_netstack::ids::{ForwardId, Ipv4Prefix, Ipv6Prefix, MacAddr, NetworkId, PortId};
use rusqlite::types::{Type, ValueRef};
use rusqlite::{Row, Transaction};
use serde::de::DeserializeOwned;

/// One network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkRow {
    /// Its number.
    pub id: NetworkId,
    /// 64 hexadecimal digits.
    pub uid: String,
    /// Its name.
    pub name: String,
    /// Its addresses.
    pub subnet: Ipv4Prefix,
    /// Ours.
    pub gateway: Ipv4Addr,
    /// Its IPv6 addresses, if it has any.
    pub prefix6: Option<Ipv6Prefix>,
    /// Largest IP packet in bytes.
    pub mtu: u16,
    /// No way out.
    pub internal: bool,
    /// IPv4 is reached under 64:ff9b::/96.
    pub nat64: bool,
    /// The user's own labels.
    pub labels: BTreeMap<String, String>,
    /// RFC 3339, UTC.
    pub created: String,
    /// Seconds since 1970.
    pub created_at: i64,
}

impl NetworkRow {
    /// Columns in the order that [`NetworkRow::read`] expects.
    pub(super) const COLUMNS: &str = "id, uid, name, subnet, gateway, mtu, internal, labels, \
        strftime('%Y-%m-%dT%H:%M:%SZ', created, 'unixepoch'), prefix6, \
        created, nat64";

    pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: NetworkId(row.get(0)?),
            uid: row.get(1)?,
            name: row.get(2)?,
            subnet: parsed(row, 3)?,
            gateway: parsed(row, 4)?,
            mtu: row.get(5)?,
            internal: row.get(6)?,
            labels: json(row, 7)?,
            created: row.get(8)?,
            prefix6: match row.get_ref(9)? {
                ValueRef::Null => None,
                _ => Some(parsed(row, 9)?),
            },
            created_at: row.get(10)?,
            nat64: row.get(11)?,
        })
    }

    /// The IPv6 address of who has that IPv4 address: the same host number, so that `::2` goes with 10.88.0.2. The
    /// gateway's number is one, whatever it is in IPv4.
    pub fn address6_of(&self, address: Ipv4Addr) -> Option<Ipv6Addr> {
        let number = |address: Ipv4Addr| address.to_bits() - self.subnet.address().to_bits();
        let host = match number(address) {
            1 => number(self.gateway),
            host => host,
        };
        Some(self.prefix6?.with_interface_id(host.into()))
    }
}

/// Which object of the kernel: device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// `st_dev`.
    pub dev: u64,
    /// `st_ino`.
    pub ino: u64,
}

/// The process that a workload lives and dies with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// As the host sees it.
    pub pid: i32,
    /// Field 22 of /proc/PID/stat: with it a recycled pid is told apart.
    pub start_time: u64,
    /// Its network namespace; `None` for a virtual machine monitor, which is on the host's own.
    pub netns: Option<Identity>,
}

/// One workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadRow {
    /// Number of its attachment.
    pub id: PortId,
    /// 64 hexadecimal digits.
    pub uid: String,
    /// Its name.
    pub name: String,
    /// How it came.
    pub kind: WorkloadKind,
    /// What its monitor speaks; `None` for other kinds.
    pub attachment: Option<VmAttachment>,
    /// Queues of its interface; of a virtual machine that means nothing, and is one.
    pub queues: u16,
    /// The network it is on.
    pub network: NetworkId,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// What of the host's loopback it may reach.
    pub allow_host: Vec<AllowedPort>,
    /// Whether its own resolv.conf is written.
    pub resolv_conf: bool,
    /// Which boot of the host it belongs to.
    pub boot_id: String,
    /// RFC 3339, UTC.
    pub created: String,
    /// Seconds since 1970.
    pub created_at: i64,
    /// `None` while its namespaces are being made, and for virtual machines whose monitor is somebody else's.
    pub process: Option<Process>,
}

impl WorkloadRow {
    /// Whether it has a port on its network: a virtual machine has one before its monitor runs.
    pub fn is_placed(&self) -> bool {
        self.process.is_some() || self.kind == WorkloadKind::Vm
    }

    /// Columns in the order that [`WorkloadRow::read`] expects.
    pub(super) const COLUMNS: &str = "id, uid, name, kind, network, address, mac, allow_host, \
        resolv_conf, boot_id, strftime('%Y-%m-%dT%H:%M:%SZ', created, 'unixepoch'), created, \
        pid, start_time, netns_dev, netns_ino, attachment, queues";

    pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let process = match row.get::<_, Option<i32>>(12)? {
            Some(pid) => Some(Process {
                pid,
                start_time: unsigned(row, 13)?,
                netns: match row.get::<_, Option<i64>>(14)? {
                    Some(_) => Some(Identity { dev: unsigned(row, 14)?, ino: unsigned(row, 15)? }),
                    None => None,
                },
            }),
            None => None,
        };
        Ok(Self {
            id: PortId(row.get(0)?),
            uid: row.get(1)?,
            name: row.get(2)?,
            kind: match row.get::<_, String>(3)?.as_str() {
                "run" => WorkloadKind::Run,
                "vm" => WorkloadKind::Vm,
                _ => WorkloadKind::Attach,
            },
            attachment: row.get::<_, Option<String>>(16)?.map(|name| match name.as_str() {
                "stream" => VmAttachment::Stream,
                "dgram" => VmAttachment::Dgram,
                _ => VmAttachment::VhostUser,
            }),
            queues: row.get(17)?,
            network: NetworkId(row.get(4)?),
            address: parsed(row, 5)?,
            mac: parsed(row, 6)?,
            allow_host: json(row, 7)?,
            resolv_conf: row.get(8)?,
            boot_id: row.get(9)?,
            created: row.get(10)?,
            created_at: row.get(11)?,
            process,
        })
    }
}

/// One published port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortRow {
    /// Its number.
    pub id: ForwardId,
    /// Where it listens.
    pub host: SocketAddr,
    /// Name of the workload it leads to; there need not be one.
    pub target: String,
    /// The port there.
    pub target_port: u16,
    /// Which transport.
    pub protocol: Transport,
    /// Which source address the workload sees.
    pub source: Source,
    /// The workload it ends with; `None` for `port add`.
    pub workload: Option<PortId>,
}

impl PortRow {
    /// Columns in the order that [`PortRow::read`] expects.
    pub(super) const COLUMNS: &str =
        "id, host_ip, host_port, target, target_port, source, workload, protocol";

    pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: ForwardId(row.get(0)?),
            host: SocketAddr::new(parsed(row, 1)?, row.get(2)?),
            target: row.get(3)?,
            target_port: row.get(4)?,
            source: match row.get::<_, String>(5)?.as_str() {
                "gateway" => Source::Gateway,
                _ => Source::Client,
            },
            workload: row.get::<_, Option<u32>>(6)?.map(PortId),
            protocol: match row.get::<_, String>(7)?.as_str() {
                "udp" => Transport::Udp,
                _ => Transport::Tcp,
            },
        })
    }
}

/// Everything that is wanted, as of one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Networks, oldest first.
    pub networks: Vec<NetworkRow>,
    /// Workloads, oldest first.
    pub workloads: Vec<WorkloadRow>,
    /// Published ports, oldest first.
    pub ports: Vec<PortRow>,
}

/// Reads everything.
pub fn snapshot(tx: &Transaction<'_>) -> rusqlite::Result<Snapshot> {
    Ok(Snapshot {
        networks: super::networks(tx)?,
        workloads: super::workloads(tx)?,
        ports: super::ports(tx)?,
    })
}

/// SQLite's integers are signed; a negative one was never written by us.
fn unsigned(row: &Row<'_>, index: usize) -> rusqlite::Result<u64> {
    let value: i64 = row.get(index)?;
    u64::try_from(value).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(index, value))
}

fn parsed<T: FromStr>(row: &Row<'_>, index: usize) -> rusqlite::Result<T>
where
    T::Err: Error + Send + Sync + 'static,
{
    row.get::<_, String>(index)?.parse().map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(index, Type::Text, Box::new(error))
    })
}

fn json<T: DeserializeOwned>(row: &Row<'_>, index: usize) -> rusqlite::Result<T> {
    serde_json::from_str(&row.get::<_, String>(index)?).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(index, Type::Text, Box::new(error))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_address_ends_as_the_ipv4_address_does_and_is_never_the_gateways() {
        let mut row = NetworkRow {
            id: NetworkId(1),
            uid: String::new(),
            name: "bridge".into(),
            subnet: "10.88.0.0/16".parse().unwrap(),
            gateway: Ipv4Addr::new(10, 88, 0, 1),
            prefix6: Some("fd00:0:0:1::/64".parse().unwrap()),
            mtu: 1500,
            internal: false,
            nat64: false,
            labels: BTreeMap::new(),
            created: String::new(),
            created_at: 0,
        };
        let of = |row: &NetworkRow, text: &str| {
            row.address6_of(text.parse().unwrap()).map(|address| address.to_string())
        };
        assert_eq!(of(&row, "10.88.0.2").unwrap(), "fd00:0:0:1::2");
        assert_eq!(of(&row, "10.88.1.2").unwrap(), "fd00:0:0:1::102");
        row.gateway = Ipv4Addr::new(10, 88, 255, 254);
        assert_eq!(of(&row, "10.88.0.1").unwrap(), "fd00:0:0:1::fffe");
        row.prefix6 = None;
        assert_eq!(of(&row, "10.88.0.2"), None);
    }
}
