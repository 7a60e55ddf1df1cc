//! Published ports: add, take back, show.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use lichen_api::{
    AddPort, Creation, ErrorCode, PortRange, PublishedPort, RemovePort, Source, Transport,
};
use lichen_netstack::ids::{ForwardId, PortId};
use rusqlite::Transaction;

use super::{App, Refusal, view};
use crate::names::WorkloadName;
use crate::state::{self, NewPort, PortRow, PortSelector, PortTarget, snapshot};
use crate::wiring::listeners::{Reserved, reserve};

/// Most ports in one request.
const MAX_RANGE: usize = 256;

impl App {
    /// All published ports, oldest first.
    pub async fn ports(&self) -> Result<Vec<PublishedPort>, Refusal> {
        let snapshot = self.store.transact(snapshot).await?;
        let seen = self.observed.seen();
        Ok(snapshot.ports.iter().map(|row| view::port(row, &snapshot, &seen)).collect())
    }

    /// Publishes ports of a workload, which need not be there yet.
    pub async fn add_port(
        &self,
        request: AddPort,
    ) -> Result<(Creation, Vec<PublishedPort>), Refusal> {
        let name = WorkloadName::parse(&request.target)?;
        let new = expand(&Wanted {
            host_ip: request.host_ip,
            host: request.host,
            target: request.target_ports,
            protocol: request.protocol,
            source: request.source,
        })?;
        let target = PortTarget { name, ends_with: None };
        let Published { rows, reserved } =
            self.store.transact(move |tx| publish(tx, &target, &new)).await?;
        let creation = if reserved.is_empty() { Creation::Existing } else { Creation::New };
        self.keep_listeners(reserved);
        self.reconciler.sync().await;
        Ok((creation, self.port_views(&rows).await?))
    }

    /// Takes back ports that were added by [`App::add_port`].
    pub async fn remove_port(&self, request: RemovePort) -> Result<Vec<PublishedPort>, Refusal> {
        if request.host.count() == 0 {
            return Err(Refusal::bad_request("the range of ports ends before it begins"));
        }
        let before = self.store.transact(snapshot).await?;
        let seen = self.observed.seen();
        let rows = self
            .store
            .transact(move |tx| {
                let RemovePort { host_ip, host, protocol } = request;
                state::remove_ports(tx, PortSelector { host_ip, range: host, protocol })
            })
            .await?;
        self.reconciler.sync().await;
        Ok(rows.iter().map(|row| view::port(row, &before, &seen)).collect())
    }

    pub(super) fn keep_listeners(&self, reserved: Vec<(ForwardId, Reserved)>) {
        for (id, reserved) in reserved {
            self.listeners.keep(id, reserved);
        }
    }

    async fn port_views(&self, rows: &[PortRow]) -> Result<Vec<PublishedPort>, Refusal> {
        let snapshot = self.store.transact(snapshot).await?;
        let seen = self.observed.seen();
        Ok(rows.iter().map(|row| view::port(row, &snapshot, &seen)).collect())
    }
}

/// Rows and sockets of ports that were just published.
pub(super) struct Published {
    /// Every port that was asked for.
    pub(super) rows: Vec<PortRow>,
    /// The sockets of those that are new.
    pub(super) reserved: Vec<(ForwardId, Reserved)>,
}

/// How often a free port is looked for that none of ours waits for.
const CHOICES: usize = 16;

/// Writes the rows and binds the sockets of those that are new, all of them or none: a socket that cannot be
/// bound undoes the rows.
pub(super) fn publish(
    tx: &Transaction<'_>,
    target: &PortTarget,
    new: &[NewPort],
) -> Result<Published, Refusal> {
    let before = state::ports(tx)?;
    let mut chosen: Vec<Reserved> = Vec::new();
    let mut wanted = Vec::with_capacity(new.len());
    for port in new {
        if port.host.port() == 0 {
            let reserved = choose(*port, &before)?;
            wanted.push(NewPort { host: reserved.address(), ..*port });
            chosen.push(reserved);
        } else {
            wanted.push(*port);
        }
    }
    let rows = state::insert_ports(tx, target, &wanted)?;
    let mut reserved = Vec::new();
    for row in rows.iter().filter(|row| before.iter().all(|before| before.id != row.id)) {
        let is_it = |one: &Reserved| one.address() == row.host && one.protocol() == row.protocol;
        let socket = match chosen.iter().position(is_it) {
            Some(at) => chosen.swap_remove(at),
            None => reserve(row.host, row.protocol)?,
        };
        reserved.push((row.id, socket));
    }
    Ok(Published { rows, reserved })
}

/// A free port of the host that no row names: a UDP port that waits for its workload is not bound.
fn choose(port: NewPort, rows: &[PortRow]) -> Result<Reserved, Refusal> {
    for _ in 0..CHOICES {
        let reserved = reserve(port.host, port.protocol)?;
        let number = reserved.address().port();
        let named = |row: &PortRow| row.protocol == port.protocol && row.host.port() == number;
        if !rows.iter().any(named) {
            return Ok(reserved);
        }
    }
    Err(Refusal::new(ErrorCode::Conflict, "no free port was found; name one"))
}

/// What one request asks to be published.
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    pub(super) host_ip: Option<IpAddr>,
    pub(super) host: PortRange,
    pub(super) target: PortRange,
    pub(super) protocol: Transport,
    pub(super) source: Source,
}

/// One request as single ports.
pub(super) fn expand(wanted: &Wanted) -> Result<Vec<NewPort>, Refusal> {
    let Wanted { host_ip, host, target, protocol, source } = *wanted;
    let ip = host_ip.unwrap_or(Ipv4Addr::LOCALHOST.into());
    let targets = target.count();
    let is_chosen = host == PortRange::one(0);
    let count = if is_chosen { targets } else { host.count() };
    if count == 0 || targets == 0 {
        return Err(Refusal::bad_request("a range of ports ends before it begins"));
    }
    if target.start == 0 || (host.start == 0 && !is_chosen) {
        return Err(Refusal::bad_request(
            "0 is not a port; use one from 1 to 65535, or 0 alone as the host port for a free one",
        ));
    }
    if count != targets {
        return Err(Refusal::bad_request(format!(
            "{count} host ports cannot lead to {targets} ports of the workload; \
             make both ranges of one length"
        )));
    }
    if count > MAX_RANGE {
        return Err(Refusal::bad_request(format!(
            "a range of {count} ports is too long; at most {MAX_RANGE} can be published at a time"
        )));
    }
    if ip.is_multicast() {
        return Err(Refusal::new(
            ErrorCode::BadRequest,
            format!("{ip} is a multicast address; nobody can connect to it"),
        ));
    }
    Ok((target.start..=target.end)
        .zip(0..)
        .map(|(target_port, nth)| {
            let host = SocketAddr::new(ip, if is_chosen { 0 } else { host.start + nth });
            NewPort { host, target_port, protocol, source }
        })
        .collect())
}

/// Ports that end with their workload.
pub(super) fn ends_with(name: WorkloadName, id: PortId) -> PortTarget {
    PortTarget { name, ends_with: Some(id) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u16, end: u16) -> PortRange {
        PortRange { start, end }
    }

    fn wanted(host: PortRange, target: PortRange) -> Wanted {
        Wanted { host_ip: None, host, target, protocol: Transport::Tcp, source: Source::Client }
    }

    #[test]
    fn without_an_address_a_port_is_published_on_loopback() {
        let new = expand(&wanted(range(8080, 8081), range(80, 81))).unwrap();
        let shown: Vec<String> =
            new.iter().map(|port| format!("{}>{}", port.host, port.target_port)).collect();
        assert_eq!(shown, ["127.0.0.1:8080>80", "127.0.0.1:8081>81"]);
    }

    #[test]
    fn a_host_port_of_zero_is_one_that_is_free_for_each() {
        let new = expand(&wanted(range(0, 0), range(80, 81))).unwrap();
        let targets: Vec<u16> = new.iter().map(|port| port.target_port).collect();
        assert_eq!(targets, [80, 81]);
        let mut connection = state::in_memory();
        let tx = connection.transaction().unwrap();
        let target = PortTarget { name: WorkloadName::parse("web").unwrap(), ends_with: None };
        let first = publish(&tx, &target, &new).unwrap();
        let again = publish(&tx, &target, &new).unwrap();
        let mut ports: Vec<u16> =
            first.rows.iter().chain(&again.rows).map(|row| row.host.port()).collect();
        ports.sort_unstable();
        ports.dedup();
        assert!(ports.len() == 4 && ports[0] > 0, "{ports:?}");
        assert_eq!(first.reserved.len(), 2);
    }

    #[test]
    fn ranges_that_make_no_sense_are_refused() {
        for (host, target) in [
            (range(0, 1), range(80, 81)),
            (range(80, 80), range(0, 0)),
            (range(81, 80), range(81, 80)),
            (range(80, 81), range(80, 82)),
            (range(1, 60_000), range(1, 60_000)),
        ] {
            let error = expand(&wanted(host, target)).unwrap_err();
            assert_eq!(error.code, ErrorCode::BadRequest, "{host:?} {target:?}");
        }
    }
}
