//! The client of the control API: one connection per call over the unix socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::http::request;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use crate::capture::{Capture, CaptureRequest};
use crate::error::{ErrorBody, ErrorCode};
use crate::flow::Flows;
use crate::network::{
    CreateNetwork, Filters, Network, NetworkSummary, PruneNetworks, Pruned, Removed,
};
use crate::published_port::{AddPort, PublishedPort, RemovePort};
use crate::status::{Status, StopDaemon, Version};
use crate::workload::{AttachWorkload, CreateWorkload, Lease, Workload};
use crate::{VERSION, VERSION_HEADER};

/// Largest answer that is read, in bytes.
const MAX_ANSWER: usize = 16 * 1024 * 1024;

/// Longest wait for an answer; attaching waits for the netns helper and the datapath.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens on the socket.
    #[error("cannot reach the daemon at {socket}")]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// What connecting said.
        source: io::Error,
    },
    /// The daemon refused.
    #[error("{message}")]
    Refused {
        /// For programs.
        code: ErrorCode,
        /// For people.
        message: String,
    },
    /// Client and daemon are of different versions.
    #[error(
        "this is lichen {VERSION}, but the running daemon is {daemon}; \
         bring it up to date with: lichen daemon restart --datapath"
    )]
    VersionSkew {
        /// The daemon's version, or `unknown`.
        daemon: String,
    },
    /// The connection broke.
    #[error("the daemon closed the connection before it answered; see its log in daemon.log")]
    Connection(#[from] hyper::Error),
    /// The connection broke, after it was upgraded.
    #[error("the connection to the daemon broke before it answered; see its log in daemon.log")]
    Broken(#[source] io::Error),
    /// No answer in time.
    #[error("the daemon did not answer within {} s; see its log in daemon.log", PATIENCE.as_secs())]
    TimedOut,
    /// What came back is not what the API answers.
    #[error("the daemon's answer is not understood: {0}")]
    Answer(String),
}

/// Whether a request made something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Creation {
    /// It was made.
    New,
    /// It was there already, exactly as asked.
    Existing,
}

/// Speaks to the daemon on one socket.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client of the daemon that listens on `socket`. Does not connect yet.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    /// The socket it speaks to.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The daemon's version. Answered by a daemon of any version.
    pub async fn version(&self) -> Result<Version, ClientError> {
        self.get("/v1/version").await
    }

    /// The daemon as a whole.
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.get("/v1/status").await
    }

    /// Ends the daemon. Obeyed by a daemon of any version.
    pub async fn stop(&self, request: &StopDaemon) -> Result<(), ClientError> {
        self.call::<serde_json::Value>(Method::POST, "/v1/daemon/stop", Some(request)).await?;
        Ok(())
    }

    /// What is counted, in the text form of Prometheus.
    pub async fn metrics(&self) -> Result<String, ClientError> {
        let text = async {
            let (response, connection) = self.send(Method::GET, "/v1/metrics", None::<&()>).await?;
            let whole = whole(response, &connection).await?;
            if whole.status.is_success() {
                return Ok(String::from_utf8_lossy(&whole.bytes).into_owned());
            }
            Err(whole.refusal())
        };
        tokio::time::timeout(PATIENCE, text).await.map_err(|_| ClientError::TimedOut)?
    }

    /// The flows that live now, of one workload or of all.
    pub async fn flows(&self, workload: Option<&str>) -> Result<Flows, ClientError> {
        match workload {
            Some(name) => self.get(&format!("/v1/workloads/{}/flows", segment(name))).await,
            None => self.get("/v1/flows").await,
        }
    }

    /// Begins a capture, which goes on for as long as it is read.
    pub async fn capture(&self, request: &CaptureRequest) -> Result<Capture, ClientError> {
        let begun = async {
            let (response, connection) =
                self.send(Method::POST, "/v1/capture", Some(request)).await?;
            if response.status().is_success() {
                return Ok(Capture::new(response.into_body(), connection));
            }
            Err(whole(response, &connection).await?.refusal())
        };
        tokio::time::timeout(PATIENCE, begun).await.map_err(|_| ClientError::TimedOut)?
    }

    /// All workloads, oldest first.
    pub async fn workloads(&self) -> Result<Vec<Workload>, ClientError> {
        self.get("/v1/workloads").await
    }

    /// One workload.
    pub async fn workload(&self, name: &str) -> Result<Workload, ClientError> {
        self.get(&format!("/v1/workloads/{}", segment(name))).await
    }

    /// Reserves a name and an address, and attaches when the request names a process.
    pub async fn create_workload(&self, request: &CreateWorkload) -> Result<Lease, ClientError> {
        Ok(self.call(Method::POST, "/v1/workloads", Some(request)).await?.1)
    }

    /// Attaches a workload that was reserved before.
    pub async fn attach_workload(
        &self,
        name: &str,
        process: &AttachWorkload,
    ) -> Result<Workload, ClientError> {
        let path = format!("/v1/workloads/{}/attach", segment(name));
        Ok(self.call(Method::POST, &path, Some(process)).await?.1)
    }

    /// Removes a workload; a running one only by force.
    pub async fn remove_workload(&self, name: &str, force: Force) -> Result<Removed, ClientError> {
        self.delete(&format!("/v1/workloads/{}{}", segment(name), force.query())).await
    }

    /// The networks that match, oldest first; all of them without filters.
    pub async fn networks(&self, filters: &Filters) -> Result<Vec<NetworkSummary>, ClientError> {
        self.get(&format!("/v1/networks{}", filters.query())).await
    }

    /// One network by name or id.
    pub async fn network(&self, name: &str) -> Result<Network, ClientError> {
        self.get(&format!("/v1/networks/{}", segment(name))).await
    }

    /// Makes a network.
    pub async fn create_network(
        &self,
        request: &CreateNetwork,
    ) -> Result<(Creation, Network), ClientError> {
        self.call(Method::POST, "/v1/networks", Some(request)).await
    }

    /// Removes a network; one with workloads on it only by force.
    pub async fn remove_network(&self, name: &str, force: Force) -> Result<Removed, ClientError> {
        self.delete(&format!("/v1/networks/{}{}", segment(name), force.query())).await
    }

    /// Removes every network without workloads that matches, the default one excepted.
    pub async fn prune_networks(&self, request: &PruneNetworks) -> Result<Pruned, ClientError> {
        Ok(self.call::<Pruned>(Method::POST, "/v1/networks/prune", Some(request)).await?.1)
    }

    /// All published ports.
    pub async fn ports(&self) -> Result<Vec<PublishedPort>, ClientError> {
        self.get("/v1/ports").await
    }

    /// Publishes a port or a range of ports; all of them or none.
    pub async fn add_port(
        &self,
        request: &AddPort,
    ) -> Result<(Creation, Vec<PublishedPort>), ClientError> {
        self.call(Method::POST, "/v1/ports", Some(request)).await
    }

    /// Takes back a published port or a range of them.
    pub async fn remove_port(
        &self,
        request: &RemovePort,
    ) -> Result<Vec<PublishedPort>, ClientError> {
        Ok(self.call(Method::POST, "/v1/ports/remove", Some(request)).await?.1)
    }

    async fn get<A: DeserializeOwned>(&self, path: &str) -> Result<A, ClientError> {
        Ok(self.call(Method::GET, path, None::<&()>).await?.1)
    }

    async fn delete<A: DeserializeOwned>(&self, path: &str) -> Result<A, ClientError> {
        Ok(self.call(Method::DELETE, path, None::<&()>).await?.1)
    }

    async fn call<A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<(Creation, A), ClientError> {
        tokio::time::timeout(PATIENCE, self.exchange(method, path, body))
            .await
            .map_err(|_| ClientError::TimedOut)?
    }

    async fn exchange<A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<(Creation, A), ClientError> {
        let (response, connection) = self.send(method, path, body).await?;
        whole(response, &connection).await?.understand()
    }

    /// Sends a request, and answers the head of the response with the task that its body comes by.
    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<(Response<Incoming>, JoinHandle<Result<(), hyper::Error>>), ClientError> {
        let (mut sender, connection) = self.connect().await?;
        let connection = tokio::spawn(connection);
        let body = match body {
            Some(value) => serde_json::to_vec(value).expect("our own shapes are always JSON"),
            None => Vec::new(),
        };
        let request = Self::head(method, path)
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| ClientError::Answer(error.to_string()))?;
        Ok((sender.send_request(request).await?, connection))
    }

    /// A connection of its own for one request.
    pub(crate) async fn connect(
        &self,
    ) -> Result<(SendRequest<Full<Bytes>>, Connection), ClientError> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| ClientError::Unreachable { socket: self.socket.clone(), source })?;
        Ok(http1::handshake(TokioIo::new(stream)).await?)
    }

    /// The beginning of every request.
    pub(crate) fn head(method: Method, path: &str) -> request::Builder {
        let head = Request::builder().method(method).uri(path);
        head.header("host", "lichen").header(VERSION_HEADER, VERSION)
    }
}

/// What a connection to the daemon is driven by.
type Connection = http1::Connection<TokioIo<UnixStream>, Full<Bytes>>;

/// A response that has been read.
pub(crate) struct Whole {
    status: StatusCode,
    daemon: Option<String>,
    bytes: Bytes,
}

/// Reads a response whole, and ends its connection.
pub(crate) async fn whole(
    response: Response<Incoming>,
    connection: &JoinHandle<Result<(), hyper::Error>>,
) -> Result<Whole, ClientError> {
    let daemon = response
        .headers()
        .get(VERSION_HEADER)
        .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let status = response.status();
    let bytes = Limited::new(response.into_body(), MAX_ANSWER)
        .collect()
        .await
        .map_err(|error| ClientError::Answer(error.to_string()))?
        .to_bytes();
    connection.abort();
    Ok(Whole { status, daemon, bytes })
}

/// Whether something in use is removed too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Force {
    /// Even in use.
    Yes,
    /// Only when nothing needs it.
    No,
}

impl Force {
    fn query(self) -> &'static str {
        match self {
            Self::Yes => "?force=true",
            Self::No => "",
        }
    }
}

impl Filters {
    fn query(&self) -> String {
        if self.0.is_empty() {
            return String::new();
        }
        let text = serde_json::to_string(self).expect("a map of strings is JSON");
        format!("?filters={}", segment(&text))
    }
}

impl Whole {
    fn understand<A: DeserializeOwned>(self) -> Result<(Creation, A), ClientError> {
        if !self.status.is_success() {
            return Err(self.refusal());
        }
        let answer =
            serde_json::from_slice(&self.bytes).map_err(|e| ClientError::Answer(e.to_string()))?;
        let creation =
            if self.status == StatusCode::CREATED { Creation::New } else { Creation::Existing };
        Ok((creation, answer))
    }

    pub(crate) fn refusal(self) -> ClientError {
        let daemon = self.daemon.unwrap_or_else(|| "unknown".to_owned());
        match serde_json::from_slice::<ErrorBody>(&self.bytes) {
            Ok(ErrorBody { error }) if error.code == ErrorCode::VersionSkew => {
                ClientError::VersionSkew { daemon }
            }
            Ok(ErrorBody { error }) => {
                ClientError::Refused { code: error.code, message: error.message }
            }
            Err(_) if daemon != VERSION => ClientError::VersionSkew { daemon },
            Err(_) => {
                ClientError::Answer(format!("HTTP status {} without an error body", self.status))
            }
        }
    }
}

/// `text` as one segment of a path: everything but unreserved characters percent-encoded (RFC 3986).
pub(crate) fn segment(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_one_segment_of_the_path() {
        assert_eq!(segment("web-1"), "web-1");
        assert_eq!(segment("../a?b c"), "..%2Fa%3Fb%20c");
    }

    #[test]
    fn a_daemon_of_another_version_is_named_with_the_remedy() {
        let body = br#"{"error":{"code":"version_skew","message":"x"}}"#;
        let (status, bytes) = (StatusCode::CONFLICT, Bytes::from_static(body));
        let whole = Whole { status, daemon: Some("9.9.9".into()), bytes };
        let error = whole.understand::<Version>().unwrap_err();
        assert!(error.to_string().contains("running daemon is 9.9.9"), "{error}");
        assert!(error.to_string().contains("lichen daemon restart"), "{error}");
    }

    #[test]
    fn a_refusal_keeps_its_code_and_its_message() {
        let body = br#"{"error":{"code":"not_found","message":"no network `x`"}}"#;
        let (status, bytes) = (StatusCode::NOT_FOUND, Bytes::from_static(body));
        let error = Whole { status, daemon: None, bytes }.understand::<Version>().unwrap_err();
        assert!(matches!(error, ClientError::Refused { code: ErrorCode::NotFound, .. }));
        assert_eq!(error.to_string(), "no network `x`");
    }
}
