//! Virtio-net devices whose rings live in a VM's shared memory, as vhost-user gives them to us.
//!
//! Present so far: the split ring itself (virtio 1.2, 2.7) in both directions, and a driver that plays the
//! guest in tests. Absent so far: the vhost-user protocol, and the netstack's `Port` over these rings.
//!
//! The guest is not trusted. What it wrote is copied out of its memory first and judged on the copy, since
//! it can change its memory under us; a bad chain costs that frame, a bad index costs that queue.
#![deny(unsafe_code)]

#[cfg(target_os = "linux")]
pub mod queue;
#[cfg(target_os = "linux")]
pub mod testing;
