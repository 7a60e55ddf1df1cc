//! The control API of Lichen: its JSON shapes, where its socket lies, and the client that speaks it.
//!
//! The API is HTTP/1.1 over a unix socket of the user's own, never over TCP: a guest or a web page could
//! reach a TCP port. Requests refuse keys they do not know; answers may gain keys. Shapes that Docker
//! also has ([`Network`]) use Docker's keys, so that scripts written for it read them.
//!
//! Deliberately absent: what the values mean. The daemon decides that; this crate knows no sibling.

mod capture;
mod client;
mod descriptor;
mod directories;
mod drops;
mod error;
mod flow;
mod network;
mod published_port;
mod status;
mod workload;

pub use capture::{Capture, CaptureRequest, CapturedFlow, MAX_SNAPLEN};
pub use client::{Client, ClientError, Creation, Force};
pub use descriptor::{DESCRIPTOR_UPGRADE, Plugged, UnfitDescriptor, attachment_of};
pub use directories::{
    Directories, DirectoryError, MAX_SOCKET_PATH, RuntimeDirectory, StateDirectory,
};
pub use drops::{DropExplanation, drop_explanations};
pub use error::{ErrorBody, ErrorCode, ErrorDetail};
pub use flow::{Flow, FlowProtocol, FlowState, Flows};
pub use network::{
    Addresses, ConfigFrom, Container, CreateNetwork, Filters, Ipam, IpamConfig, Network,
    NetworkSummary, PruneNetworks, Pruned, Removed,
};
pub use published_port::{AddPort, PortRange, PublishedPort, RemovePort, Source, State};
pub use status::{
    BudgetUse, Datapath, DatapathState, Status, StopDaemon, StopScope, Version, WorkloadCounters,
};
pub use workload::{
    AllowedPort, AttachWorkload, CreateWorkload, Lease, MAX_QUEUES, Publish, Transport,
    VmAttachment, Workload, WorkloadKind, WorkloadState,
};

/// Version of this program, which client and daemon compare on every call.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Carries [`VERSION`] on every request and every response.
pub const VERSION_HEADER: &str = "lichen-version";

/// Most values of all filters of one request.
pub const MAX_FILTERS: usize = 64;

/// Most bytes of all filters of one request, keys and values together.
pub const MAX_FILTER_BYTES: usize = 4096;

/// Largest request body the daemon reads, in bytes.
pub const MAX_REQUEST_BODY: usize = 64 * 1024;
