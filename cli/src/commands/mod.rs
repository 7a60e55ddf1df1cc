//! One file for each command, or for a family of them.

pub(crate) mod attach;
pub(crate) mod capture;
pub(crate) mod completions;
mod each;
pub(crate) mod explain;
pub(crate) mod flows;
pub(crate) mod logs;
pub(crate) mod metrics;
pub(crate) mod network;
pub(crate) mod plug;
pub(crate) mod port;
pub(crate) mod ps;
pub(crate) mod run;
pub(crate) mod service;
pub(crate) mod status;
pub(crate) mod top;
pub(crate) mod vm;
