//! How many addresses of a network are left.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use lichen_netstack::ids::MacAddr;
use rusqlite::{Transaction, params};

use super::rows::NetworkRow;
use crate::ipam;

/// Addresses of a network by what they are to it. Whoever has one of IPv4 has one of IPv6 with the same number, so
/// that these count for both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressUse {
    /// Those that a workload may have: not the network's own, not its broadcast address, not the gateway's.
    pub total: u32,
    /// Those that workloads have.
    pub used: u32,
    /// Those that nobody has and that stay with somebody for a while: with a name whose workload has ended, or with
    /// the MAC of a workload that has declined its address.
    pub reserved: u32,
}

impl AddressUse {
    /// What is left.
    pub fn free(self) -> u32 {
        self.total.saturating_sub(self.used).saturating_sub(self.reserved)
    }
}

/// Counts the addresses of `network`.
pub fn address_use(
    tx: &Transaction<'_>,
    network: &NetworkRow,
    now: i64,
) -> rusqlite::Result<AddressUse> {
    let (mut used, mut reserved) = (BTreeSet::<Ipv4Addr>::new(), BTreeSet::new());
    let mut rows = tx.prepare_cached("SELECT address, mac FROM workloads WHERE network = ?1")?;
    let mut rows = rows.query([network.id.0])?;
    while let Some(row) = rows.next()? {
        used.extend(row.get::<_, String>(0)?.parse::<Ipv4Addr>());
        let mac = row.get::<_, String>(1)?.parse::<MacAddr>().ok();
        reserved.extend(mac.and_then(MacAddr::to_ipv4));
    }
    let mut rows =
        tx.prepare_cached("SELECT address FROM reservations WHERE network = ?1 AND expires > ?2")?;
    let mut rows = rows.query(params![network.id.0, now])?;
    while let Some(row) = rows.next()? {
        reserved.extend(row.get::<_, String>(0)?.parse::<Ipv4Addr>());
    }
    let (subnet, gateway) = (network.subnet, network.gateway);
    reserved.retain(|address| {
        !used.contains(address) && ipam::is_assignable(subnet, gateway, *address)
    });
    let count = |set: &BTreeSet<_>| u32::try_from(set.len()).unwrap_or(u32::MAX);
    Ok(AddressUse {
        total: ipam::assignable(subnet),
        used: count(&used),
        reserved: count(&reserved),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{
        NewWorkload, end_workload, ensure_default_network, in_memory, insert_workload,
        network_named, new_workload as new, readdress_workload,
    };

    #[test]
    fn addresses_are_used_then_reserved_for_ten_minutes_then_free() {
        let mut connection = in_memory();
        let tx = connection.transaction().unwrap();
        ensure_default_network(&tx, &Default::default(), 0).unwrap();
        let network = network_named(&tx, "bridge").unwrap();
        let counted = |now| {
            let it = address_use(&tx, &network, now).unwrap();
            (it.total, it.used, it.reserved, it.free())
        };
        assert_eq!(counted(0), (65_533, 0, 0, 65_533));
        let (_, web) = insert_workload(&tx, &new("web"), 0).unwrap();
        let (_, db) = insert_workload(&tx, &new("db"), 0).unwrap();
        assert_eq!(counted(0), (65_533, 2, 0, 65_531));
        end_workload(&tx, web.id, 100).unwrap();
        assert_eq!(counted(101), (65_533, 1, 1, 65_531));
        readdress_workload(&tx, db.id, db.address).unwrap();
        assert_eq!(counted(101), (65_533, 1, 2, 65_530), "what it declined stays with its MAC");
        assert_eq!(counted(700), (65_533, 1, 1, 65_531));
        let odd = NewWorkload { mac: Some("02:4c:01:02:03:04".parse().unwrap()), ..new("odd") };
        insert_workload(&tx, &odd, 700).unwrap();
        assert_eq!(counted(700), (65_533, 2, 1, 65_530), "1.2.3.4 is none of the network's");
    }
}
