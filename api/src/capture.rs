//! Captures: frames as they pass, as a stream of pcapng.

use std::net::SocketAddr;
use std::str::FromStr;

use http_body_util::BodyExt;
use hyper::body::{Bytes, Incoming};
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use crate::{ClientError, FlowProtocol};

/// `POST /v1/capture`; answered by pcapng for as long as it is read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaptureRequest {
    /// Only of this workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<String>,
    /// Only of workloads on this network, those that join it later too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// Most bytes of each frame; left out, all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snaplen: Option<u32>,
    /// Only of this flow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow: Option<CapturedFlow>,
    /// Large segments in pieces, as they would be on a wire, instead of whole, as they pass.
    #[serde(default)]
    pub segment: bool,
}

/// A flow by what [`Flow`](crate::Flow) says of it. Frames of both directions are its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CapturedFlow {
    /// What it speaks.
    pub protocol: FlowProtocol,
    /// The workload's end; of a ping its identifier is the port.
    pub guest: SocketAddr,
    /// The other end; of a ping its port is zero.
    pub remote: SocketAddr,
}

/// Why a text is no flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "write a flow as `lichen flows` shows it: PROTO:GUEST-REMOTE, such as \
     tcp:10.88.0.2:40000-192.0.2.1:443 or udp:[fd00::2]:40000-[2001:db8::1]:443"
)]
pub struct NotAFlow;

impl FromStr for CapturedFlow {
    type Err = NotAFlow;

    fn from_str(text: &str) -> Result<Self, NotAFlow> {
        let (protocol, ends) = text.split_once(':').ok_or(NotAFlow)?;
        let (guest, remote) = ends.split_once('-').ok_or(NotAFlow)?;
        let protocols = [FlowProtocol::Tcp, FlowProtocol::Udp, FlowProtocol::Icmp];
        let protocol = protocols.into_iter().find(|it| it.name() == protocol).ok_or(NotAFlow)?;
        let end = |text: &str| text.parse::<SocketAddr>().map_err(|_| NotAFlow);
        let flow = Self { protocol, guest: end(guest)?, remote: end(remote)? };
        if flow.guest.is_ipv4() == flow.remote.is_ipv4() { Ok(flow) } else { Err(NotAFlow) }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_is_written_as_it_is_shown_and_anything_else_is_refused() {
        let end = |text: &str| text.parse::<SocketAddr>().unwrap();
        for (text, protocol, guest, remote) in [
            (
                "tcp:10.88.0.2:4000-192.0.2.1:443",
                FlowProtocol::Tcp,
                "10.88.0.2:4000",
                "192.0.2.1:443",
            ),
            (
                "udp:[fd00::2]:1-[2001:db8::1]:2",
                FlowProtocol::Udp,
                "[fd00::2]:1",
                "[2001:db8::1]:2",
            ),
            ("icmp:10.88.0.2:7-192.0.2.1:0", FlowProtocol::Icmp, "10.88.0.2:7", "192.0.2.1:0"),
        ] {
            let flow = CapturedFlow { protocol, guest: end(guest), remote: end(remote) };
            assert_eq!(text.parse(), Ok(flow), "{text}");
        }
        for text in [
            "",
            "tcp",
            "tcp:10.88.0.2:4000",
            "sctp:10.88.0.2:4000-192.0.2.1:443",
            "tcp:10.88.0.2-192.0.2.1",
            "tcp:10.88.0.2:99999-192.0.2.1:443",
            "tcp:web:4000-192.0.2.1:443",
            "tcp:10.88.0.2:4000-[2001:db8::1]:443",
        ] {
            assert_eq!(text.parse::<CapturedFlow>(), Err(NotAFlow), "{text}");
        }
    }
}
