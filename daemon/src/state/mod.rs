//! What must survive: networks, workloads, addresses, published ports, in one SQLite file.
//!
//! **One thread writes**: [`Store`] sends it closures, each run in one immediate transaction that is
//! committed (and synced) before the caller hears of it. So of two requests for one name exactly one
//! wins, and desired state is on disk before it is applied.
//!
//! Deliberately absent: any idea of what is running. [`crate::reconcile`] compares.

mod address_use;
mod migrations;
mod networks;
mod open;
mod ports;
mod rows;
mod workloads;

use rusqlite::{Connection, Transaction, TransactionBehavior};
use tokio::sync::oneshot;

pub use address_use::{AddressUse, address_use};
pub use networks::{
    InUse, Ipv6Wish, NetworkError, NewNetwork, ensure_default_network, insert_network,
    network_named, networks, prune_networks, remove_network,
};
pub use open::{OpenError, open};
pub use ports::{NewPort, PortError, PortSelector, PortTarget, insert_ports, ports, remove_ports};
pub use rows::{Identity, NetworkRow, PortRow, Process, Snapshot, WorkloadRow, snapshot};
pub use workloads::{
    NewWorkload, WorkloadError, attach_workload, end_workload, insert_workload, is_workload_netns,
    readdress_workload, workload_named, workload_with_uid, workloads,
};

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// The database, behind the one thread that touches it. Clones share it.
#[derive(Clone, Debug)]
pub struct Store {
    jobs: std::sync::mpsc::Sender<Job>,
}

impl Store {
    /// Gives the connection a thread of its own, which ends with the last clone.
    pub fn start(mut connection: Connection) -> std::io::Result<Self> {
        let (jobs, queue) = std::sync::mpsc::channel::<Job>();
        std::thread::Builder::new().name("state".to_owned()).spawn(move || {
            for job in queue {
                job(&mut connection);
            }
        })?;
        Ok(Self { jobs })
    }

    /// Runs `work` in one transaction and commits it when it succeeds.
    pub async fn transact<T, E>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<rusqlite::Error> + Send + 'static,
    {
        self.submit(work).await.expect("the state thread lives as long as a Store does")
    }

    /// [`Store::transact`] for a thread outside the async runtime.
    pub fn transact_blocking<T, E>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<rusqlite::Error> + Send + 'static,
    {
        self.submit(work).blocking_recv().expect("the state thread lives as long as a Store does")
    }

    fn submit<T, E>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, E> + Send + 'static,
    ) -> oneshot::Receiver<Result<T, E>>
    where
        T: Send + 'static,
        E: From<rusqlite::Error> + Send + 'static,
    {
        let (answer, receiver) = oneshot::channel();
        let job: Job = Box::new(move |connection| {
            // The caller may have gone away (a closed API connection); the work is done all the same.
            let _ = answer.send(in_transaction(connection, work));
        });
        self.jobs.send(job).expect("the state thread lives as long as a Store does");
        receiver
    }
}

fn in_transaction<T, E: From<rusqlite::Error>>(
    connection: &mut Connection,
    work: impl FnOnce(&Transaction<'_>) -> Result<T, E>,
) -> Result<T, E> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let value = work(&transaction)?;
    transaction.commit()?;
    Ok(value)
}

/// A command of a test that is to join the default network.
#[cfg(test)]
fn new_workload(name: &str) -> NewWorkload {
    NewWorkload {
        uid: None,
        name: Some(crate::names::WorkloadName::parse(name).unwrap()),
        network: "bridge".into(),
        kind: lichen_api::WorkloadKind::Run,
        attachment: None,
        queues: 1,
        address: None,
        mac: None,
        allow_host: Vec::new(),
        resolv_conf: false,
        boot_id: "boot".into(),
    }
}

/// A database of a test's own, in memory.
#[cfg(test)]
pub fn in_memory() -> Connection {
    let mut connection = Connection::open_in_memory().unwrap();
    migrations::migrate(&mut connection).unwrap();
    connection
}
