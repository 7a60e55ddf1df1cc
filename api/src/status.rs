//! The daemon as a whole.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// `GET /v1/version`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// The daemon's program version.
    pub version: String,
    /// Version of the words between control and datapath.
    pub protocol: u32,
    /// The daemon's process.
    pub pid: u32,
    /// Started by a service manager, which will start it again.
    pub service: bool,
}

/// `GET /v1/status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The daemon's program version.
    pub version: String,
    /// The daemon's process.
    pub pid: u32,
    /// Seconds since the daemon started.
    pub uptime_seconds: u64,
    /// The process that carries the frames.
    pub datapath: Datapath,
    /// Where the sockets are.
    pub runtime_directory: String,
    /// Where database and logs are.
    pub state_directory: String,
    /// The host's resolvers, as the datapath asks them.
    pub resolvers: Vec<SocketAddr>,
    /// How many networks there are.
    pub networks: usize,
    /// How many workloads there are.
    pub workloads: usize,
    /// How many published ports there are.
    pub ports: usize,
    /// What the datapath has counted; empty when it does not answer.
    pub counters: Vec<WorkloadCounters>,
}

/// The datapath, as control sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Datapath {
    /// How it is.
    #[serde(flatten)]
    pub state: DatapathState,
    /// How often it was started again since the daemon started.
    pub restarts: u64,
}

/// How the datapath is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum DatapathState {
    /// Connected.
    Running {
        /// Its process.
        pid: u32,
        /// Its program version.
        version: String,
        /// How many workers carry its frames.
        workers: u16,
        /// For how many microseconds each looks for more before it sleeps.
        busy_poll_us: u16,
    },
    /// Not connected; control is starting it.
    Starting {
        /// What went wrong last, if anything did.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        reason: Option<String>,
    },
}

/// Counters (since it was attached) and gauges (now) of one workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadCounters {
    /// Whose.
    pub workload: String,
    /// Frames read from the workload.
    pub frames_from_guest: u64,
    /// Bytes of those frames.
    pub bytes_from_guest: u64,
    /// Frames written to the workload.
    pub frames_to_guest: u64,
    /// Bytes of those frames.
    pub bytes_to_guest: u64,
    /// Dropped frames by reason, zero ones left out.
    pub drops: BTreeMap<String, u64>,
    /// Use and cap by budget.
    pub budgets: BTreeMap<String, BudgetUse>,
}

/// A budget's use and its cap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetUse {
    /// In use now.
    pub used: u64,
    /// Never exceeded.
    pub cap: u64,
}

/// `POST /v1/daemon/stop`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StopDaemon {
    /// What ends.
    pub scope: StopScope,
    /// Whether a service manager should start it again.
    #[serde(default)]
    pub restart: bool,
}

/// What ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopScope {
    /// Control alone; frames go on.
    Control,
    /// Control and datapath.
    Everything,
}
