//! Network devices of virtual machines, over vhost-user: the guest's rings lie in memory that its monitor
//! shares, and frames are copied between them and the datapath without anybody in between.
//!
//! - [`service`]: the thread that accepts monitors and hands running rings to the datapath
//! - `session`, `device`, `features`, `memory`: one connection, what it sets up, what is agreed on
//! - [`queue`]: the split ring itself (virtio 1.2, 2.7) in both directions
//! - [`port`]: running rings as a port of the datapath; `rings`: one ring of it
//! - `log`: telling the monitor which pages were written, while it migrates its guest
//! - [`fetch`]: having the processor fetch what will be needed soon
//! - `bell`: waking a guest without waiting for it
//! - `mapping`: what a monitor shares, mapped; `sigbus`: surviving that its owner cuts it short
//!
//! Neither guest nor monitor is trusted. What the guest wrote is copied out of its memory first and judged
//! on the copy, since it can change its memory under us; a bad chain costs that frame, a bad index that
//! ring, a bad message that connection, and nothing costs another port anything.
//!
//! Deliberately absent: packed rings, buffers in flight, the control queue and
//! the link's status (both stay with the monitor).
#![deny(unsafe_code)]

#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "system calls that no crate wraps")]
mod bell;
#[cfg(target_os = "linux")]
mod device;
#[cfg(target_os = "linux")]
mod features;
pub mod fetch;
#[cfg(target_os = "linux")]
mod log;
#[cfg(target_os = "linux")]
mod mapping;
#[cfg(target_os = "linux")]
mod memory;
#[cfg(target_os = "linux")]
pub mod port;
#[cfg(target_os = "linux")]
pub mod queue;
#[cfg(target_os = "linux")]
mod rings;
#[cfg(target_os = "linux")]
pub mod service;
#[cfg(target_os = "linux")]
mod session;
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "a signal handler, and the pages that it maps")]
mod sigbus;
#[cfg(target_os = "linux")]
pub mod testing;
