//! Workloads: reserve, attach, remove, show.

use std::time::{Duration, Instant};

use lichen_api::{
    AttachWorkload, CreateWorkload, ErrorCode, Lease, MAX_QUEUES, Removed, Workload, WorkloadKind,
};
use lichen_netstack::command::LinkState;
use lichen_netstack::ids::{MacAddr, PortId};

use super::ports::{Wanted, ends_with, expand, publish};
use super::{App, Refusal, now, view};
use crate::names::{NetworkName, WorkloadName};
use crate::state::{self, NewPort, NewWorkload, Snapshot, WorkloadRow, snapshot};

/// How long a workload may wait for its network. A datapath that just died is back sooner.
const ATTACH_PATIENCE: Duration = Duration::from_secs(15);

/// How long a killed workload may take to end.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// Most openings to the host.
const MAX_OPENINGS: usize = 64;

/// Whether a running workload is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Running {
    /// It is killed.
    Kill,
    /// It stays, and the request is refused.
    Refuse,
}

impl App {
    /// All workloads, oldest first.
    pub async fn workloads(&self) -> Result<Vec<Workload>, Refusal> {
        let snapshot = self.store.transact(snapshot).await?;
        let seen = self.observed.seen();
        Ok(snapshot
            .workloads
            .iter()
            .map(|row| view::workload(row, &snapshot, &seen, &self.directories.runtime))
            .collect())
    }

    /// One workload.
    pub async fn workload(&self, name: String) -> Result<Workload, Refusal> {
        let (snapshot, row) = self.named(name).await?;
        Ok(view::workload(&row, &snapshot, &self.observed.seen(), &self.directories.runtime))
    }

    /// Reserves name, address and ports; attaches at once when the request names a process.
    pub async fn create_workload(&self, request: CreateWorkload) -> Result<Lease, Refusal> {
        let (new, ports) = self.wanted(&request)?;
        if let Some(lease) = self.made_before(&request).await? {
            return Ok(lease);
        }
        if let (WorkloadKind::Vm, Some(name)) = (request.kind, &new.name) {
            self.directories.runtime.vm_socket(name.as_str()).map_err(|error| {
                Refusal::new(ErrorCode::Unprocessable, format!("{error}, or choose a shorter name"))
            })?;
        }
        // Looked at first, so that a process that is not there leaves no trace.
        let held = match request.process {
            Some(process) => {
                Some(self.namespaces.hold(process.pid, process.start_time, request.kind)?)
            }
            None => None,
        };
        let process = held.as_ref().map(|(process, _)| *process);
        let at = now();
        let (id, name, reserved) = self
            .store
            .transact(move |tx| {
                let (_, row) = state::insert_workload(tx, &new, at)?;
                let name = WorkloadName::parse(&row.name)?;
                let reserved = publish(tx, &ends_with(name, row.id), &ports)?.reserved;
                if let Some(process) = process {
                    state::attach_workload(tx, &row.name, process)?;
                }
                Ok::<_, Refusal>((row.id, row.name, reserved))
            })
            .await?;
        self.keep_listeners(reserved);
        tracing::info!(port = %id, workload = name, kind = ?request.kind, "workload reserved");
        if let Some((_, pidfd)) = held {
            self.watch_process(id, pidfd);
        }
        if request.kind != WorkloadKind::Run {
            self.join(id).await?;
        }
        self.lease(name).await
    }

    /// What an earlier daemon has made of the same request, and could not tell any more.
    async fn made_before(&self, request: &CreateWorkload) -> Result<Option<Lease>, Refusal> {
        let Some(uid) = request.uid.clone() else { return Ok(None) };
        let found = self.store.transact(move |tx| state::workload_with_uid(tx, &uid)).await?;
        let Some(row) = found else { return Ok(None) };
        let is_other =
            request.name.as_ref().is_some_and(|name| !name.eq_ignore_ascii_case(&row.name));
        if is_other || request.kind != row.kind {
            return Err(Refusal::new(
                ErrorCode::Conflict,
                format!("that uid is workload `{}`'s; leave it out, or make up another", row.name),
            ));
        }
        if row.kind != WorkloadKind::Run {
            self.join(row.id).await?;
        }
        Ok(Some(self.lease(row.name).await?))
    }

    /// Gives a reserved workload its process and its network.
    pub async fn attach_workload(
        &self,
        name: String,
        request: AttachWorkload,
    ) -> Result<Workload, Refusal> {
        let (process, pidfd) =
            self.namespaces.hold(request.pid, request.start_time, WorkloadKind::Run)?;
        let row = self.store.transact(move |tx| state::attach_workload(tx, &name, process)).await?;
        tracing::info!(port = %row.id, workload = row.name, pid = process.pid, "workload attached");
        self.watch_process(row.id, pidfd);
        self.join(row.id).await?;
        self.workload(row.name).await
    }

    /// Removes a workload: one of `run` is ended, one of `attach` goes on without its network.
    pub async fn remove_workload(
        &self,
        name: String,
        running: Running,
    ) -> Result<Removed, Refusal> {
        let row = self.store.transact(move |tx| state::workload_named(tx, &name)).await?;
        let runs = match row.kind {
            WorkloadKind::Run => row.process.is_some(),
            WorkloadKind::Attach => false,
            WorkloadKind::Vm => {
                let link = self.observed.seen().links.get(&row.id).cloned();
                row.process.is_some() || link == Some(LinkState::Connected)
            }
        };
        if runs && running == Running::Refuse {
            return Err(Refusal::new(
                ErrorCode::Conflict,
                match row.kind {
                    WorkloadKind::Vm => format!(
                        "virtual machine `{0}` is running; take away its network, and end the monitor \
                         if Lichen started it, with: lichen vm rm -f {0}",
                        row.name
                    ),
                    _ => format!(
                        "workload `{0}` is running; end it with: lichen rm -f {0}",
                        row.name
                    ),
                },
            ));
        }
        if runs && row.process.is_some() {
            self.kill(row.id).await?;
        }
        self.processes.forget(row.id);
        self.end(row.id).await;
        Ok(Removed { removed: row.name })
    }

    async fn kill(&self, id: PortId) -> Result<(), Refusal> {
        let failed = |error| {
            Refusal::new(ErrorCode::Unprocessable, format!("cannot end the workload: {error}"))
        };
        self.processes.kill(id).map_err(failed)?;
        let deadline = Instant::now() + END_PATIENCE;
        while self.processes.watches(id) {
            if Instant::now() >= deadline {
                return Err(Refusal::new(
                    ErrorCode::Unprocessable,
                    "the workload was killed but has not ended yet; see: lichen ps",
                ));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Waits until the datapath has the workload's port; a workload that cannot have one is ended.
    async fn join(&self, id: PortId) -> Result<(), Refusal> {
        let result = self.port_in_force(id).await;
        if result.is_err() {
            self.processes.forget(id);
            self.end(id).await;
        }
        result
    }

    /// Waits until the datapath has a port.
    pub(super) async fn port_in_force(&self, id: PortId) -> Result<(), Refusal> {
        let deadline = Instant::now() + ATTACH_PATIENCE;
        loop {
            self.reconciler.sync().await;
            match self.observed.seen().ports.get(&id) {
                Some(Ok(())) => return Ok(()),
                Some(Err(reason)) => {
                    return Err(Refusal::new(ErrorCode::Unprocessable, reason.clone()));
                }
                None if Instant::now() >= deadline => {
                    return Err(Refusal::new(
                        ErrorCode::Unavailable,
                        "the datapath is not there; see datapath.log in the state directory, and: lichen status",
                    ));
                }
                None => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// A workload's row, and everything else as it stood at that moment.
    async fn named(&self, name: String) -> Result<(Snapshot, WorkloadRow), Refusal> {
        self.store
            .transact(move |tx| {
                let row = state::workload_named(tx, &name)?;
                Ok((snapshot(tx)?, row))
            })
            .await
    }

    async fn lease(&self, name: String) -> Result<Lease, Refusal> {
        let (snapshot, row) = self.named(name).await?;
        let hide = [self.directories.runtime.path(), self.directories.state.path()]
            .map(|path| path.display().to_string())
            .to_vec();
        Ok(view::lease(&row, &snapshot, &self.observed.seen(), hide))
    }

    fn wanted(&self, request: &CreateWorkload) -> Result<(NewWorkload, Vec<NewPort>), Refusal> {
        let name = request.name.as_deref().map(WorkloadName::parse).transpose()?;
        match (request.kind, &request.process) {
            (WorkloadKind::Attach, None) => {
                return Err(Refusal::bad_request("kind attach needs the process to attach"));
            }
            // Whoever runs the monitor may say so, that the workload ends with it.
            (WorkloadKind::Vm, _) => {}
            (WorkloadKind::Run, Some(_)) => {
                return Err(Refusal::bad_request(
                    "kind run is attached by a second request, once its process is there",
                ));
            }
            _ => {}
        }
        if request.attachment.is_some() && request.kind != WorkloadKind::Vm {
            return Err(Refusal::bad_request("attachment is for kind vm only"));
        }
        if request.queues.is_some() && request.kind == WorkloadKind::Vm {
            return Err(Refusal::bad_request(
                "queues is for kinds run and attach; how many pairs of rings a virtual machine has, its monitor is told",
            ));
        }
        let queues = request.queues.unwrap_or(1);
        if !(1..=MAX_QUEUES).contains(&queues) {
            return Err(Refusal::bad_request(format!(
                "{queues} queues cannot be had; a workload's interface has 1 to {MAX_QUEUES}"
            )));
        }
        if request.resolv_conf && request.kind != WorkloadKind::Attach {
            return Err(Refusal::bad_request("resolv_conf is for kind attach only"));
        }
        if request.allow_host.len() > MAX_OPENINGS {
            return Err(Refusal::bad_request(format!(
                "at most {MAX_OPENINGS} ports of the host can be allowed"
            )));
        }
        if request.allow_host.iter().any(|allowed| allowed.port == 0) {
            return Err(Refusal::bad_request("0 is not a port; use one from 1 to 65535"));
        }
        let mut ports = Vec::new();
        for publish in &request.ports {
            ports.extend(expand(&Wanted {
                host_ip: publish.host_ip,
                host: publish.host,
                target: publish.target_ports,
                protocol: publish.protocol,
                source: request.source,
            })?);
        }
        let same = |a: &NewPort, b: &NewPort| {
            (a.host, a.protocol) == (b.host, b.protocol) && a.host.port() > 0
        };
        if ports.iter().enumerate().any(|(i, port)| ports[..i].iter().any(|p| same(p, port))) {
            return Err(Refusal::bad_request("one host port is published twice; name it once"));
        }
        let new = NewWorkload {
            uid: request.uid.as_deref().map(uid).transpose()?,
            name,
            network: match &request.network {
                Some(network) => network.clone(),
                None => NetworkName::default_network().as_str().to_owned(),
            },
            kind: request.kind,
            attachment: (request.kind == WorkloadKind::Vm)
                .then(|| request.attachment.unwrap_or_default()),
            queues,
            address: request.address,
            mac: request.mac.as_deref().map(mac).transpose()?,
            allow_host: request.allow_host.clone(),
            resolv_conf: request.resolv_conf,
            boot_id: self.boot_id.clone(),
        };
        Ok((new, ports))
    }
}

fn uid(text: &str) -> Result<String, Refusal> {
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if text.len() == 64 && text.bytes().all(is_digit) {
        return Ok(text.to_owned());
    }
    Err(Refusal::bad_request("uid must be 64 hexadecimal digits in lower case, made up by chance"))
}

fn mac(text: &str) -> Result<MacAddr, Refusal> {
    text.parse().map_err(|_| {
        Refusal::bad_request(format!(
            "`{}` is not a MAC address; write six pairs of hexadecimal digits, such as 02:00:00:00:00:01",
            text.chars().take(32).collect::<String>().escape_default()
        ))
    })
}
