//! Doing one step: the tap or the socket that goes with it, the command, and what came of it.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use lichen_netstack::command::{
    Answer, Attachment, Command, ForwardSpec, Inventory, PortSpec, Transport,
};
use lichen_netstack::ids::{ForwardId, PortId};
use lichen_workload::spec::{NetnsTarget, TapRequest};

use super::desired::{Desired, desired};
use super::diff::{Step, diff};
use super::observed::Observed;
use crate::state::{Snapshot, WorkloadRow};
use crate::wiring::datapath_link::{AskError, DatapathLink};
use crate::wiring::listeners::Listeners;
use crate::wiring::namespaces::Namespaces;
use crate::wiring::vm_sockets::VmSockets;

/// Name of the interface in a workload.
const INTERFACE: &str = "eth0";

/// Brings one datapath to the desired state. Lives as long as the connection to it.
pub(super) struct Applier {
    link: DatapathLink,
    present: Inventory,
    namespaces: Arc<dyn Namespaces>,
    listeners: Arc<Listeners>,
    vm_sockets: Arc<VmSockets>,
    observed: Arc<Observed>,
}

/// Whether something is left to try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// All is as it should be.
    Settled,
    /// Something was refused; try again later.
    Unsettled,
}

impl Applier {
    /// Begins with what the datapath holds now.
    pub(super) fn new(
        mut link: DatapathLink,
        namespaces: Arc<dyn Namespaces>,
        listeners: Arc<Listeners>,
        vm_sockets: Arc<VmSockets>,
        observed: Arc<Observed>,
    ) -> Result<Self, AskError> {
        let present = match link.ask(&Command::Inventory, &[])? {
            Answer::Inventory(present) => present,
            other => return Err(AskError::Unexpected(format!("{other:?}"))),
        };
        for forward in present.forwards.iter().filter(|forward| !listeners.has(forward.id)) {
            let take = Command::TakeListener { forward: forward.id };
            if let (Answer::Done, Some(listener)) = link.ask_for_descriptor(&take, &[])? {
                listeners.adopt(forward.id, listener);
            }
        }
        for port in present.links.iter().map(|it| it.port).filter(|port| !vm_sockets.has(*port)) {
            let take = Command::TakeSocket { port };
            if let (Answer::Done, Some(socket)) = link.ask_for_descriptor(&take, &[])? {
                vm_sockets.adopt(port, socket);
            }
        }
        let mut seen = observed.lock();
        seen.links = present.links.iter().map(|it| (it.port, it.state.clone())).collect();
        seen.ports = present.ports.iter().map(|port| (port.id, Ok(()))).collect();
        seen.forwards = present.forwards.iter().map(|forward| (forward.id, Ok(()))).collect();
        drop(seen);
        Ok(Self { link, present, namespaces, listeners, vm_sockets, observed })
    }

    /// The link, for questions that change nothing.
    pub(super) fn link(&mut self) -> &mut DatapathLink {
        &mut self.link
    }

    /// The datapath said that a port is gone, with its forwards.
    pub(super) fn forget_port(&mut self, id: PortId, reason: &str) {
        self.present.ports.retain(|port| port.id != id);
        let (gone, kept) =
            std::mem::take(&mut self.present.forwards).into_iter().partition(|f| f.port == id);
        self.present.forwards = kept;
        let gone: Vec<ForwardSpec> = gone;
        let mut seen = self.observed.lock();
        seen.ports.insert(id, Err(reason.to_owned()));
        for forward in gone {
            seen.forwards.remove(&forward.id);
        }
    }

    /// Does everything that is missing. A refusal concerns its own step only; an error is the end of
    /// the link.
    pub(super) fn sync(
        &mut self,
        snapshot: &Snapshot,
        resolvers: &[std::net::SocketAddr],
    ) -> Result<Outcome, AskError> {
        let wanted = desired(snapshot, resolvers, &self.observed.seen());
        self.forget_unwanted(&wanted, snapshot);
        let mut outcome = Outcome::Settled;
        for step in diff(&self.present, &wanted) {
            if self.take(step, snapshot)? == Outcome::Unsettled {
                outcome = Outcome::Unsettled;
            }
        }
        self.vm_sockets.settle(&snapshot.workloads);
        let active: BTreeSet<ForwardId> = wanted.forwards.iter().map(|f| f.id).collect();
        let reserved = self.listeners.settle(&snapshot.ports, &active);
        let mut seen = self.observed.lock();
        for (id, result) in reserved {
            match result {
                Ok(()) => {
                    seen.forwards.remove(&id);
                }
                Err(error) => {
                    seen.forwards.insert(id, Err(error.to_string()));
                    outcome = Outcome::Unsettled;
                }
            }
        }
        Ok(outcome)
    }

    /// What is not wanted any more is not told any more either.
    fn forget_unwanted(&self, wanted: &Desired, snapshot: &Snapshot) {
        let mut seen = self.observed.lock();
        seen.ports.retain(|id, _| wanted.ports.iter().any(|port| port.id == *id));
        seen.links.retain(|id, _| wanted.ports.iter().any(|port| port.id == *id));
        seen.forwards.retain(|id, _| snapshot.ports.iter().any(|port| port.id == *id));
    }

    fn take(&mut self, step: Step, snapshot: &Snapshot) -> Result<Outcome, AskError> {
        match step {
            Step::RemoveForward(forward) => {
                self.settled(Command::RemoveForward { forward })?;
                self.present.forwards.retain(|present| present.id != forward);
                self.observed.lock().forwards.remove(&forward);
            }
            Step::RemovePort(port) => {
                self.settled(Command::RemovePort { port })?;
                self.present.ports.retain(|present| present.id != port);
                self.present.forwards.retain(|present| present.port != port);
                tracing::info!(%port, "port removed");
            }
            Step::RemoveNetwork(network) => {
                self.settled(Command::RemoveNetwork { network })?;
                self.present.networks.retain(|present| present.id != network);
                self.present.ports.retain(|present| present.network != network);
            }
            Step::SetNetwork(spec) => {
                if self.settled(Command::SetNetwork(spec.clone()))? == Outcome::Unsettled {
                    return Ok(Outcome::Unsettled);
                }
                self.present.networks.retain(|present| present.id != spec.id);
                self.present.networks.push(spec);
            }
            Step::SetResolvers(resolvers) => {
                if self.settled(Command::SetResolvers { resolvers: resolvers.clone() })?
                    == Outcome::Unsettled
                {
                    return Ok(Outcome::Unsettled);
                }
                tracing::info!(?resolvers, "resolvers set");
                self.present.resolvers = resolvers;
            }
            Step::AddPort(spec) => return self.add_port(spec, snapshot),
            Step::ChangePort(spec) => {
                let result = self.command(&Command::SetPort(spec.clone()), &[])?;
                return Ok(self.port_done(spec, result));
            }
            Step::SetForward(spec) => return self.set_forward(spec),
        }
        Ok(Outcome::Settled)
    }

    fn add_port(&mut self, spec: PortSpec, snapshot: &Snapshot) -> Result<Outcome, AskError> {
        let workload = snapshot
            .workloads
            .iter()
            .find(|row| row.id == spec.id)
            .expect("a desired port is derived from this snapshot");
        let descriptors = match spec.attachment {
            Attachment::Tap { .. } => self.namespaces.open_tap(&tap_request(workload, snapshot)),
            Attachment::VhostUser | Attachment::UnixStream | Attachment::UnixDatagram => self
                .vm_sockets
                .listening(workload)
                .map(|socket| vec![socket])
                .map_err(|error| error.to_string()),
        };
        let result = match descriptors {
            Ok(descriptors) => {
                let set = Command::SetPort(spec.clone());
                let brought: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
                let result = self.command(&set, &brought)?;
                if result.is_err() && spec.attachment.is_tap() {
                    // What has failed leaves no interface behind; one queue's word is the whole tap's.
                    descriptors.first().into_iter().for_each(|it| self.namespaces.discard_tap(it));
                }
                result
            }
            Err(reason) => Err(reason),
        };
        Ok(self.port_done(spec, result))
    }

    fn port_done(&mut self, spec: PortSpec, result: Result<(), String>) -> Outcome {
        let outcome = match &result {
            Ok(()) => {
                tracing::info!(port = %spec.id, workload = spec.name, address = %spec.address, "port set");
                self.present.ports.retain(|present| present.id != spec.id);
                self.present.ports.push(spec.clone());
                Outcome::Settled
            }
            Err(_) => Outcome::Unsettled,
        };
        let before = self.observed.lock().ports.insert(spec.id, result.clone());
        // It is tried again and again; the log tells only what is new.
        if let (Err(reason), true) = (&result, before.as_ref() != Some(&result)) {
            tracing::warn!(port = %spec.id, workload = spec.name, reason, "port not set");
        }
        outcome
    }

    fn set_forward(&mut self, spec: ForwardSpec) -> Result<Outcome, AskError> {
        if !self.present.ports.iter().any(|port| port.id == spec.port) {
            let reason = "the workload is not on its network; see: lichen ps".to_owned();
            self.observed.lock().forwards.insert(spec.id, Err(reason));
            return Ok(Outcome::Unsettled);
        }
        let protocol = match spec.protocol {
            Transport::Tcp => lichen_api::Transport::Tcp,
            Transport::Udp => lichen_api::Transport::Udp,
        };
        let result = match self.listeners.listening(spec.id, spec.bound, protocol) {
            Ok(socket) => self.command(&Command::SetForward(spec.clone()), &[socket.as_fd()])?,
            Err(error) => Err(error.to_string()),
        };
        let outcome = match &result {
            Ok(()) => {
                tracing::info!(forward = %spec.id, bound = %spec.bound, port = %spec.port, "published");
                self.present.forwards.push(spec.clone());
                Outcome::Settled
            }
            Err(_) => Outcome::Unsettled,
        };
        let before = self.observed.lock().forwards.insert(spec.id, result.clone());
        if let (Err(reason), true) = (&result, before.as_ref() != Some(&result)) {
            tracing::warn!(forward = %spec.id, bound = %spec.bound, reason, "not published");
        }
        Ok(outcome)
    }

    /// A command whose refusal is told by the log alone.
    fn settled(&mut self, command: Command) -> Result<Outcome, AskError> {
        match self.command(&command, &[])? {
            Ok(()) => Ok(Outcome::Settled),
            Err(reason) => {
                tracing::error!(?command, reason, "the datapath refused");
                Ok(Outcome::Unsettled)
            }
        }
    }

    fn command(
        &mut self,
        command: &Command,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Result<(), String>, AskError> {
        match self.link.ask(command, descriptors)? {
            Answer::Done => Ok(Ok(())),
            Answer::Refused { reason } => Ok(Err(reason)),
            other => Err(AskError::Unexpected(format!("{other:?}"))),
        }
    }
}

fn tap_request(workload: &WorkloadRow, snapshot: &Snapshot) -> TapRequest {
    let process = workload.process.expect("only workloads with a process have a desired port");
    let network = snapshot
        .networks
        .iter()
        .find(|network| network.id == workload.network)
        .expect("a workload's network is kept by a foreign key");
    TapRequest {
        target: NetnsTarget::Process { pid: process.pid, start_time: Some(process.start_time) },
        interface: INTERFACE.to_owned(),
        mac: workload.mac.0,
        address: workload.address,
        prefix_len: network.subnet.len(),
        gateway: Some(network.gateway),
        address6: network.address6_of(workload.address),
        mtu: network.mtu,
        queues: workload.queues,
        resolv_conf: workload
            .resolv_conf
            .then(|| format!("nameserver {}\nsearch {}.internal\n", network.gateway, network.name)),
    }
}
