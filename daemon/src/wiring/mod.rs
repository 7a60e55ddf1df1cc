//! How the parts of the daemon are joined.

pub mod attachments;
mod capture;
pub mod datapath_link;
pub mod datapath_process;
pub mod datapath_role;
pub mod descriptors;
pub mod frame_sockets;
pub mod link;
pub mod listeners;
pub mod name_service;
pub mod namespaces;
mod pcapng;
pub mod process_watch;
pub mod resolv_conf;
pub mod vm_sockets;
pub mod workers;
