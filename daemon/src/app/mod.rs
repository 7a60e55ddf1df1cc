//! What the API does, apart from HTTP: one method per request, on one shared [`App`].
//!
//! **State first**: every change is written, then applied by [`crate::reconcile`]; what a method answers
//! about how things are is what the reconciler saw. **Idempotent**: saying the same again is fine.

mod capture;
mod flows;
mod metrics;
mod moment;
mod network_filter;
mod network_view;
mod networks;
mod plugging;
mod ports;
mod refusal;
mod status;
mod view;
mod workloads;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use lichen_api::{Directories, StopDaemon, WorkloadKind};
use lichen_netstack::ids::PortId;
use tokio::sync::watch;

use crate::ipam;
use crate::reconcile::{Observed, Reconciler, Worker};
use crate::state::{self, NetworkError, Store};
use crate::wiring::datapath_process::DatapathSource;
use crate::wiring::listeners::Listeners;
use crate::wiring::namespaces::Namespaces;
use crate::wiring::process_watch::ProcessWatch;
use crate::wiring::vm_sockets::VmSockets;

pub use plugging::FramePlace;
pub use refusal::Refusal;
pub use workloads::Running;

/// A reserved workload whose process never came is given up after that many seconds.
const STARTING_FOR: i64 = 60;

/// What an [`App`] is made of.
pub struct Parts {
    /// Sockets and state.
    pub directories: Directories,
    /// The database.
    pub store: Store,
    /// Where datapaths come from.
    pub source: Box<dyn DatapathSource>,
    /// Where taps come from.
    pub namespaces: Arc<dyn Namespaces>,
    /// The host's resolvers.
    pub resolvers: Vec<std::net::SocketAddr>,
    /// Which boot of the host this is.
    pub boot_id: String,
    /// Whether a service manager will start us again.
    pub service: bool,
}

/// Control, as the API sees it.
pub struct App {
    directories: Directories,
    store: Store,
    reconciler: Reconciler,
    observed: Arc<Observed>,
    listeners: Arc<Listeners>,
    namespaces: Arc<dyn Namespaces>,
    processes: ProcessWatch,
    boot_id: String,
    service: bool,
    started: Instant,
    stop: watch::Sender<Option<StopDaemon>>,
}

impl App {
    /// Ends what died meanwhile, takes hold of what lives, and starts to reconcile.
    pub async fn start(parts: Parts) -> Result<Arc<Self>, StartError> {
        let routes = ipam::host_routes();
        let at = now();
        parts.store.transact(move |tx| state::ensure_default_network(tx, &routes, at)).await?;
        let (observed, listeners) = (Arc::<Observed>::default(), Arc::<Listeners>::default());
        let vm_sockets = Arc::new(VmSockets::new(parts.directories.runtime.clone()));
        let living = end_the_dead(&parts).await?;
        let (ended, mut endings) = tokio::sync::mpsc::unbounded_channel();
        let worker = Worker {
            store: parts.store.clone(),
            source: parts.source,
            namespaces: Arc::clone(&parts.namespaces),
            listeners: Arc::clone(&listeners),
            vm_sockets,
            observed: Arc::clone(&observed),
            resolvers: parts.resolvers,
        };
        let app = Arc::new(Self {
            directories: parts.directories,
            store: parts.store,
            reconciler: worker.start().map_err(StartError::Thread)?,
            observed,
            listeners,
            namespaces: parts.namespaces,
            processes: ProcessWatch::start(ended).map_err(StartError::Thread)?,
            boot_id: parts.boot_id,
            service: parts.service,
            started: Instant::now(),
            stop: watch::Sender::new(None),
        });
        for (id, pidfd) in living {
            app.watch_process(id, pidfd);
        }
        let ending = Arc::clone(&app);
        tokio::spawn(async move {
            while let Some(id) = endings.recv().await {
                ending.processes.forget(id);
                ending.end(id).await;
            }
        });
        tokio::spawn(Arc::clone(&app).give_up_the_unborn());
        Ok(app)
    }

    /// For whoever feeds it, such as the watcher of resolvers.
    pub fn reconciler(&self) -> &Reconciler {
        &self.reconciler
    }

    /// Ends with the request that asked for the end.
    pub async fn stopped(&self) -> StopDaemon {
        let mut receiver = self.stop.subscribe();
        let asked = receiver.wait_for(Option::is_some).await.expect("the sender lives in self");
        asked.expect("waited for it")
    }

    /// Ends control, and the datapath if asked. The answer is sent before the socket goes.
    pub async fn stop(&self, request: StopDaemon) {
        tracing::info!(?request, "asked to stop");
        self.reconciler.stop(request.scope).await;
        self.stop.send_replace(Some(request));
    }

    /// Whether a peer in that process is inside a workload; one that cannot be looked at counts as such.
    ///
    /// A workload can make further network namespaces, which nobody has recorded; so only our own is
    /// trusted.
    pub async fn is_in_workload(&self, pid: i32) -> bool {
        let own = self.namespaces.netns_of(std::process::id().cast_signed()).ok();
        match self.namespaces.netns_of(pid) {
            Ok(netns) if Some(netns) != own => true,
            Ok(netns) => self
                .store
                .transact(move |tx| state::is_workload_netns(tx, netns))
                .await
                .unwrap_or_else(|error: rusqlite::Error| {
                    tracing::error!(%error, "cannot tell whether a peer is a workload");
                    true
                }),
            Err(error) => {
                tracing::warn!(pid, %error, "cannot tell a peer's network namespace");
                true
            }
        }
    }

    fn watch_process(&self, id: PortId, pidfd: std::os::fd::OwnedFd) {
        if let Err(error) = self.processes.watch(id, pidfd) {
            tracing::error!(%id, %error, "cannot watch a workload; its end is seen at the next start");
        }
    }

    /// Ends a workload in state and datapath; both have let go when this returns.
    async fn end(&self, id: PortId) {
        let at = now();
        match self.store.transact(move |tx| state::end_workload(tx, id, at)).await {
            Ok(true) => tracing::info!(port = %id, "workload ended"),
            // Somebody else just did, and may not have told the datapath yet.
            Ok(false) => {}
            Err(error) => {
                let error: rusqlite::Error = error;
                tracing::error!(port = %id, %error, "cannot write that a workload ended");
            }
        }
        self.reconciler.sync().await;
    }

    /// Whoever reserved a workload and vanished leaves nothing for ever.
    async fn give_up_the_unborn(self: Arc<Self>) {
        let mut tick = tokio::time::interval(Duration::from_secs(10));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let before = now() - STARTING_FOR;
            let rows = self.store.transact(state::workloads).await;
            for row in rows.unwrap_or_else(|error: rusqlite::Error| {
                tracing::error!(%error, "cannot read the workloads");
                Vec::new()
            }) {
                if !row.is_placed() && row.created_at < before {
                    tracing::warn!(workload = row.name, "never attached, given up");
                    self.end(row.id).await;
                }
            }
        }
    }
}

/// Why control cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The database.
    #[error("the state cannot be used")]
    Database(#[from] rusqlite::Error),
    /// The default network.
    #[error("the default network cannot be made")]
    Network(#[from] NetworkError),
    /// No thread.
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
}

/// Rows of an earlier boot, and rows whose process is gone, end. Answers the processes that live.
async fn end_the_dead(
    parts: &Parts,
) -> Result<Vec<(PortId, std::os::fd::OwnedFd)>, rusqlite::Error> {
    let rows = parts.store.transact(state::workloads).await?;
    let at = now();
    let mut living = Vec::new();
    for row in rows {
        let held = match row.process {
            // Nobody's process: it is there until it is removed.
            None if row.kind == WorkloadKind::Vm => continue,
            _ if row.boot_id != parts.boot_id => None,
            // Its launcher may still be about to attach it.
            None if row.created_at >= at - STARTING_FOR => continue,
            None => None,
            Some(process) => {
                parts.namespaces.hold(process.pid, Some(process.start_time), row.kind).ok()
            }
        };
        match held {
            Some((_, pidfd)) => living.push((row.id, pidfd)),
            None => {
                tracing::info!(workload = row.name, "ended while no daemon ran");
                let id = row.id;
                parts.store.transact(move |tx| state::end_workload(tx, id, at)).await?;
            }
        }
    }
    Ok(living)
}

/// Seconds since 1970.
fn now() -> i64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

/// The kernel's name for this boot.
pub fn boot_id() -> std::io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}
