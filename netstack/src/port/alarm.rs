//! How a port tells the thread that owns its guest's socket that the guest is served no longer, and why.

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
pub struct Alarm<T> {
    wake: Arc<OwnedFd>,
    raised: Mutex<Option<T>>,
}

impl<T: Clone> Alarm<T> {
    /// An alarm that makes `wake`, an eventfd, readable.
    pub fn new(wake: Arc<OwnedFd>) -> Self {
        Self { wake, raised: Mutex::new(None) }
    }

    /// What was raised.
    pub fn raised(&self) -> Option<T> {
        self.raised.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The first reason is the one that is told.
    pub fn raise(&self, why: T) {
        self.raised.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
        // A counter that is full wakes as well.
        let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
    }
}
