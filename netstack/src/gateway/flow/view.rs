//! Flows as a person is shown them.

use super::FlowKey;
use crate::command::{FlowProtocol, FlowState};
use crate::time::Instant;

/// Bytes of payload that a flow has carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Handed to the host.
    pub from_guest: u64,
    /// Taken from the host.
    pub to_guest: u64,
}

/// One flow as it is now.
#[derive(Clone, Copy, Debug)]
pub struct FlowView {
    /// Which protocol.
    pub protocol: FlowProtocol,
    /// Its two ends as the guest sees them; of a ping, the guest's port is the identifier.
    pub key: FlowKey,
    /// Where it stands.
    pub state: FlowState,
    /// When something of it last came: of TCP from the guest, of others from either side.
    pub heard: Instant,
    /// What it has carried.
    pub traffic: Traffic,
}
