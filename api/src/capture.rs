//! Captures: frames as they pass, as a stream of pcapng.

use http_body_util::BodyExt;
use hyper::body::{Bytes, Incoming};
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use crate::ClientError;

/// `POST /v1/capture`; answered by pcapng for as long as it is read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaptureRequest {
    /// Only of this workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<String>,
    /// Only of workloads that are on this network when the capture begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// Most bytes of each frame; left out, all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snaplen: Option<u32>,
}

/// The longest frame that there is, in bytes, Ethernet header included.
pub const MAX_SNAPLEN: u32 = 65_535 + 14;

/// A capture that runs. Dropping it ends it.
#[derive(Debug)]
pub struct Capture {
    body: Incoming,
    connection: JoinHandle<Result<(), hyper::Error>>,
}

impl Capture {
    pub(crate) fn new(body: Incoming, connection: JoinHandle<Result<(), hyper::Error>>) -> Self {
        Self { body, connection }
    }

    /// What came next; `None` when the capture has ended. Waits as long as nothing passes.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            match self.body.frame().await {
                None => return Ok(None),
                Some(frame) => {
                    if let Ok(data) = frame?.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.connection.abort();
    }
}
