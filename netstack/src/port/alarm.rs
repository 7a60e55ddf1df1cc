//! How a port tells the thread that owns its guest's socket that the guest is served no longer.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

/// Why a guest that came over a socket is served no longer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It has closed its end.
    Gone,
    /// What it sent cannot be served: what is wrong, and what to do.
    Trouble(String),
}

/// Raised by a port, once, and heard by whoever waits for `wake`.
#[derive(Debug)]
pub struct Alarm {
    wake: Arc<OwnedFd>,
    ended: Mutex<Option<Ended>>,
}

impl Alarm {
    /// An alarm that makes `wake`, an eventfd, readable.
    pub fn new(wake: Arc<OwnedFd>) -> Self {
        Self { wake, ended: Mutex::new(None) }
    }

    /// What was raised.
    pub fn ended(&self) -> Option<Ended> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The first reason is the one that is told.
    pub(super) fn raise(&self, why: Ended) {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
        // A counter that is full wakes as well.
        let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
    }
}
