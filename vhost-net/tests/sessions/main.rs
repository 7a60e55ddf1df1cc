//! The service over real sockets, against monitors that behave and monitors that do not.
#![cfg(target_os = "linux")]

mod bed;
mod conversations;
mod hostile;
mod log;
mod pairs;
mod through_a_worker;
