//! Split rings: what is common to both directions.

pub(crate) mod access;
mod chain;
pub mod error;
pub mod from_guest;
pub mod layout;
mod ring;
pub mod to_guest;

/// Who a buffer is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    FromGuest,
    ToGuest,
}

/// What the guest's driver has agreed to, as far as rings care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingFeatures {
    /// Whether a frame may be spread over several buffers.
    pub header: HeaderLayout,
    /// How the two sides tell each other to stay silent.
    pub notices: Notices,
    /// What the guest may put in place of a chain.
    pub tables: Tables,
}

/// The virtio-net header in front of each frame in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderLayout {
    /// Ten bytes: neither VERSION_1 nor MRG_RXBUF.
    Legacy,
    /// Twelve bytes, one buffer a frame: VERSION_1 alone.
    Single,
    /// Twelve bytes, as many buffers as it takes: MRG_RXBUF.
    Mergeable,
}

impl HeaderLayout {
    /// Bytes of the header.
    pub fn len(self) -> usize {
        match self {
            Self::Legacy => 10,
            Self::Single | Self::Mergeable => 12,
        }
    }

    /// Never: every layout has fields.
    pub fn is_empty(self) -> bool {
        false
    }
}

/// Suppression of kicks and calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notices {
    /// By the flags of each ring.
    Flags,
    /// By the index after which a notice is wanted (EVENT_IDX).
    EventIndex,
}

/// Whether a descriptor may name a table of descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tables {
    /// INDIRECT_DESC was not agreed on.
    Refused,
    /// INDIRECT_DESC.
    Accepted,
}
