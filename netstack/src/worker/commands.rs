//! What control tells a worker to do: ports, and published ports, come and change, move and go.

use std::sync::mpsc;

use super::slot::{self, Slot};
use super::{MAX_PARCELS, Moving, Worker, WorkerCommand, WorkerEvent, crossing};
use crate::command::{Flows, ForwardSpec, MAX_FLOW_ROWS, PortSpec};
use crate::gateway::names::NameService;
use crate::host::{Host, PublishedSocket, Token, TokenKind};
use crate::ids::PortId;
use crate::port::Port;
use crate::time::Instant;

impl<P: Port, H: Host, N: NameService> Worker<P, H, N> {
    /// Carries out a command.
    pub fn handle_command(&mut self, now: Instant, command: WorkerCommand<P, H>) {
        match command {
            WorkerCommand::SetPort { slot, spec, io } => self.set_port(now, slot, spec, io),
            WorkerCommand::Plug { slot, port, io, before } => {
                self.plug(now, slot, port, io, &before);
            }
            WorkerCommand::Yield { slot, port, to } => {
                let moving = self.give_up(now, slot, port);
                // Who asked may have gone; then the port is closed here.
                let _ = to.send(moving);
            }
            WorkerCommand::Adopt { moving } => self.adopt(now, moving),
            WorkerCommand::RemovePort { slot } => self.close_slot(now, slot),
            WorkerCommand::SetForward { slot, spec, socket } => {
                self.set_forward(slot, spec, socket);
            }
            WorkerCommand::RemoveForward { slot, forward } => {
                if let Some(Some(slot)) = self.slots.get_mut(usize::from(slot)) {
                    slot.forwards.retain(|_, open| open.spec.id != forward);
                    slot.gateway.published.close(forward);
                }
                self.share_descriptors();
            }
            WorkerCommand::SetDirectory(directory) => {
                self.names.set_networks(directory.names_and_subnets().collect());
                self.directory = directory;
            }
            WorkerCommand::SetResolvers(resolvers) => self.names.set_resolvers(&resolvers),
            WorkerCommand::Others(others) => {
                self.others = others;
                self.share_descriptors();
            }
            WorkerCommand::Statistics => {
                self.count_lost();
                let statistics = self.slots.iter().flatten().map(Slot::statistics).collect();
                self.events.push_back(WorkerEvent::Statistics(statistics));
            }
            WorkerCommand::Flows { port } => {
                let flows = self.flows(now, port);
                self.events.push_back(WorkerEvent::Flows(flows));
            }
            WorkerCommand::Record { slot, port, recorder } => {
                if let Some(Some(open)) = self.slots.get_mut(usize::from(slot))
                    && open.spec.id == port
                {
                    open.io.record(recorder);
                }
            }
            WorkerCommand::Stop => {
                for slot in 0..self.slots.len() {
                    self.close_slot(now, u16::try_from(slot).expect("slots are numbered by u16"));
                }
                self.stopped = true;
            }
        }
        self.flush();
    }

    /// The flows of a port, or of all, as many as one answer takes.
    fn flows(&self, now: Instant, port: Option<PortId>) -> Flows {
        let slots = self.slots.iter().flatten();
        let slots = slots.filter(|slot| port.is_none_or(|port| slot.spec.id == port));
        let all: usize = slots.clone().map(Slot::flow_count).sum();
        let rows: Vec<_> = slots.flat_map(|slot| slot.flows(now)).take(MAX_FLOW_ROWS).collect();
        Flows { left_out: (all - rows.len()) as u64, rows }
    }

    /// Takes a port out of its slot, as it is between two turns.
    fn give_up(&mut self, now: Instant, slot: u16, port: PortId) -> Option<Moving<P, H>> {
        let open = self.slots.get(usize::from(slot))?.as_ref()?;
        if open.spec.id != port || !open.may_move() {
            return None;
        }
        self.contained(slot, |worker| worker.end_batch(now, slot));
        self.flush();
        self.count_lost();
        let mut open = self.slots.get_mut(usize::from(slot))?.take()?;
        // What waits is found where it comes to.
        open.end_polling();
        open.unwatch(&mut self.host);
        self.again.retain(|token| token.port != slot || token.kind == TokenKind::Names);
        self.paused.retain(|(_, token)| token.port != slot);
        self.share_descriptors();
        Some(Moving(Box::new(open)))
    }

    fn adopt(&mut self, now: Instant, Moving(mut open): Moving<P, H>) {
        let slot = open.number();
        // What it has sent before comes first: all that a queue may hold, however it is packed.
        for _ in 0..crossing::MAX_FRAMES / MAX_PARCELS {
            self.handle_crossings();
            if !self.links.has_more() {
                break;
            }
        }
        self.generation += 1;
        let watched = open.watch(&mut self.host, self.generation);
        let index = usize::from(slot);
        if self.slots.len() <= index {
            self.slots.resize_with(index + 1, || None);
        }
        self.slots[index] = Some(*open);
        self.share_descriptors();
        if let Err(error) = watched {
            tracing::error!(%error, "a port that has moved cannot be watched");
            return self.lose_slot(slot, "its descriptors cannot be watched");
        }
        // As if everything were ready.
        self.handle_frames(now, slot);
    }

    fn plug(&mut self, now: Instant, slot: u16, port: PortId, mut io: P, before: &mpsc::Sender<P>) {
        // It may have been made while the port was on its way here.
        if let Some(watch) = self.host.frame_watch(slot)
            && let Err(error) = io.watch(&watch)
        {
            tracing::error!(%error, "a guest's frames cannot be watched");
        }
        let old = match self.slots.get_mut(usize::from(slot)) {
            Some(Some(open)) if open.spec.id == port => open.plug(io),
            _ => io,
        };
        // Who asked may have gone; then it is closed here.
        let _ = before.send(old);
        // What came before anybody listened is found now.
        self.handle_frames(now, slot);
    }

    fn set_port(&mut self, now: Instant, slot: u16, spec: PortSpec, io: Option<P>) {
        let index = usize::from(slot);
        if self.slots.len() <= index {
            self.slots.resize_with(index + 1, || None);
        }
        match (&mut self.slots[index], io) {
            (Some(open), io) if open.spec.id == spec.id => {
                self.generation += 1;
                self.seed = next_seed(self.seed);
                let begun = (spec, self.generation, self.seed);
                let network = self.directory.network(open.spec.network).map(|it| &it.spec);
                open.change(now, &mut self.host, network, &mut self.scratch, begun);
                if let Some(io) = io {
                    open.replace_io(io);
                }
            }
            (place, Some(io)) => {
                self.generation += 1;
                let mtu = self.directory.network(spec.network).map_or(1500, |it| it.spec.mtu);
                self.seed = next_seed(self.seed);
                let seed = self.seed ^ u64::from(spec.id.0);
                *place = Some(Slot::new(spec, io, slot, self.generation, seed, mtu, now));
            }
            (_, None) => {}
        }
        self.share_descriptors();
        // What came before the port was in its place is found now.
        self.handle_frames(now, slot);
    }

    fn set_forward(
        &mut self,
        slot: u16,
        spec: ForwardSpec,
        socket: PublishedSocket<H::Listener, H::Datagram>,
    ) {
        if let Some(Some(open)) = self.slots.get_mut(usize::from(slot)) {
            open.forwards.retain(|_, forward| forward.spec.id != spec.id);
            let watched = match socket {
                PublishedSocket::Tcp(listener) => {
                    let entry = open.forwards.vacant_entry();
                    let index = u32::try_from(entry.key()).expect("forwards are few");
                    let token = Token { port: slot, kind: TokenKind::Listener, index };
                    self.host.watch_listener(&listener, token).map(|()| {
                        entry.insert(slot::Forward { spec, listener });
                    })
                }
                PublishedSocket::Udp(socket) => {
                    open.gateway.published.open(&mut self.host, slot, spec, socket)
                }
            };
            if let Err(error) = watched {
                tracing::error!(%error, "the socket of a published port cannot be watched");
            }
        }
        self.share_descriptors();
    }

    /// Resets a slot's flows and forgets its port.
    fn close_slot(&mut self, now: Instant, slot: u16) {
        if let Some(place) = self.slots.get_mut(usize::from(slot))
            && let Some(mut open) = place.take()
            && let Some(network) = self.directory.network(open.spec.network)
        {
            open.reset_flows(now, &mut self.host, &network.spec, &mut self.scratch);
            open.flush();
        }
        self.share_descriptors();
    }

    /// Divides the descriptors anew among the ports of all workers.
    pub(super) fn share_descriptors(&mut self) {
        let ports = (self.slots.iter().flatten().count() + self.others.ports).max(1);
        // A published port takes two: the worker's and the copy that control may ask for.
        let published = |slot: &Slot<P, H>| slot.forwards.len() + slot.gateway.published.openings();
        let published: usize = self.slots.iter().flatten().map(published).sum();
        let published = published + self.others.published;
        let share = self.descriptors.saturating_sub(2 * published) / ports;
        for slot in self.slots.iter_mut().flatten() {
            slot.gateway.set_share(share);
        }
    }
}

/// Another number for each life of a port.
fn next_seed(seed: u64) -> u64 {
    seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1)
}
