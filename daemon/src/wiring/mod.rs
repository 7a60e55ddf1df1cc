//! How the parts of the daemon are joined.

pub mod datapath_role;
pub mod link;
pub mod name_service;
