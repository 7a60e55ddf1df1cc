//! At most so many API connections; when one too many comes, the one that idled longest goes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::task::AbortHandle;

/// Most connections at a time.
const MAX_CONNECTIONS: usize = 64;

/// The live connections, oldest first.
#[derive(Debug, Default)]
pub(super) struct Connections(VecDeque<(AbortHandle, Arc<Activity>)>);

/// How many requests of one connection are being answered.
#[derive(Debug, Default)]
pub(super) struct Activity(AtomicUsize);

/// Counts as one request until dropped.
pub(super) struct Busy(Arc<Activity>);

impl Activity {
    /// One more request is being answered.
    pub(super) fn busy(self: &Arc<Self>) -> Busy {
        self.0.fetch_add(1, Ordering::Relaxed);
        Busy(Arc::clone(self))
    }

    fn is_idle(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Connections {
    /// Makes room, then starts a connection. When every connection is busy, the oldest goes.
    pub(super) fn admit(&mut self, start: impl FnOnce(Arc<Activity>) -> AbortHandle) {
        self.0.retain(|(task, _)| !task.is_finished());
        if self.0.len() >= MAX_CONNECTIONS {
            let index = self.0.iter().position(|(_, activity)| activity.is_idle()).unwrap_or(0);
            if let Some((task, _)) = self.0.remove(index) {
                task.abort();
            }
        }
        let activity = Arc::<Activity>::default();
        self.0.push_back((start(Arc::clone(&activity)), activity));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_oldest_idle_connection_makes_room_and_a_busy_one_stays() {
        let mut connections = Connections::default();
        let mut tasks = Vec::new();
        let mut busy = None;
        for index in 0..=MAX_CONNECTIONS {
            connections.admit(|activity| {
                let task = tokio::spawn(std::future::pending::<()>());
                let handle = task.abort_handle();
                if index == 0 {
                    busy = Some(Arc::clone(&activity));
                    std::mem::forget(activity.busy());
                }
                tasks.push(task);
                handle
            });
        }
        assert!(tasks.remove(1).await.unwrap_err().is_cancelled());
        assert!(!tasks[0].is_finished());
        assert_eq!(connections.0.len(), MAX_CONNECTIONS);
    }
}
