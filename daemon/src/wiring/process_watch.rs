//! Seeing the end of workloads. A pidfd tells it, never the tap: an open tap keeps its namespace alive.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard};

use lichen_netstack::ids::PortId;
use rustix::event::epoll;
use rustix::process::{Signal, pidfd_send_signal};
use tokio::sync::mpsc;

/// The processes that workloads live with, watched by one thread.
#[derive(Debug)]
pub struct ProcessWatch {
    epoll: Arc<OwnedFd>,
    held: Mutex<HashMap<PortId, OwnedFd>>,
}

impl ProcessWatch {
    /// Starts the thread. `ended` is told of each process that ends, once, and never of one that was
    /// forgotten long before.
    pub fn start(ended: mpsc::UnboundedSender<PortId>) -> io::Result<Self> {
        let epoll = Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC)?);
        let watched = Arc::clone(&epoll);
        std::thread::Builder::new()
            .name("process-watch".to_owned())
            .spawn(move || tell(&watched, &ended))?;
        Ok(Self { epoll, held: Mutex::default() })
    }

    /// Watches a process until it ends. A workload that is watched already keeps its first watch.
    pub fn watch(&self, id: PortId, pidfd: OwnedFd) -> io::Result<()> {
        let mut held = self.lock();
        if held.contains_key(&id) {
            return Ok(());
        }
        // Once, since a pidfd stays readable for ever.
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ONESHOT;
        epoll::add(&self.epoll, &pidfd, epoll::EventData::new_u64(id.0.into()), flags)?;
        held.insert(id, pidfd);
        Ok(())
    }

    /// Stops watching; closing a pidfd takes it out of the watched set.
    pub fn forget(&self, id: PortId) {
        self.lock().remove(&id);
    }

    /// Stops watching everything but these.
    pub fn keep_only(&self, ids: &[PortId]) {
        self.lock().retain(|id, _| ids.contains(id));
    }

    /// Whether the process is still watched, that is, its end was not dealt with.
    pub fn watches(&self, id: PortId) -> bool {
        self.lock().contains_key(&id)
    }

    /// Kills the process. One that is not watched has ended already.
    pub fn kill(&self, id: PortId) -> io::Result<()> {
        match self.lock().get(&id) {
            Some(pidfd) => match pidfd_send_signal(pidfd, Signal::KILL) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
                Err(error) => Err(error.into()),
            },
            None => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PortId, OwnedFd>> {
        self.held.lock().expect("nobody panics while holding it")
    }
}

fn tell(epoll: &OwnedFd, ended: &mpsc::UnboundedSender<PortId>) {
    let mut events = Vec::with_capacity(64);
    loop {
        events.clear();
        match epoll::wait(epoll, rustix::buffer::spare_capacity(&mut events), None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                tracing::error!(%error, "cannot watch workloads; their end is seen at the next start");
                return;
            }
        }
        for event in &events {
            let data = event.data;
            let id = u32::try_from(data.u64()).expect("only numbers of ports were put in");
            if ended.send(PortId(id)).is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use rustix::process::{Pid, PidfdFlags, pidfd_open};

    use super::*;

    #[tokio::test]
    async fn the_end_of_a_process_is_told_once() {
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let watch = ProcessWatch::start(sender).unwrap();
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = Pid::from_child(&child);
        watch.watch(PortId(7), pidfd_open(pid, PidfdFlags::empty()).unwrap()).unwrap();
        watch.kill(PortId(7)).unwrap();
        child.wait().unwrap();
        let told = tokio::time::timeout(Duration::from_secs(5), receiver.recv()).await.unwrap();
        assert_eq!(told, Some(PortId(7)));
        watch.forget(PortId(7));
        assert!(receiver.try_recv().is_err());
    }
}
