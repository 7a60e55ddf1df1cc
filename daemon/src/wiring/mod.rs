//! How the parts of the daemon are joined.

pub mod link;
