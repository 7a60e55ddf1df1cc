//! Captures: which ports are meant, and the pipe that their frames come by.

use lichen_api::{CaptureRequest, ErrorCode, FlowProtocol, MAX_SNAPLEN};
use lichen_netstack::command::{self, CaptureScope, CaptureSpec, CapturedFlow, LargeFrames};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use tokio::net::unix::pipe;

use super::{App, Refusal};
use crate::state;

/// Least that is kept of a frame: its Ethernet header.
const MIN_SNAPLEN: u32 = 14;
/// What the pipe holds, where the host allows so much.
const PIPE_SIZE: usize = 1 << 20;

impl App {
    /// Begins a capture, which ends when the pipe is closed.
    pub async fn capture(&self, request: CaptureRequest) -> Result<pipe::Receiver, Refusal> {
        let snaplen = request.snaplen.unwrap_or(MAX_SNAPLEN);
        if !(MIN_SNAPLEN..=MAX_SNAPLEN).contains(&snaplen) {
            return Err(Refusal::bad_request(format!(
                "a snap length is {MIN_SNAPLEN} to {MAX_SNAPLEN} bytes"
            )));
        }
        let flow = request.flow.map(flow).transpose()?;
        let large = if request.segment { LargeFrames::Cut } else { LargeFrames::Whole };
        let scope = self.store.transact(move |tx| meant(tx, &request)).await?;
        let spec = CaptureSpec { scope, snaplen, flow, large };
        let failed = |error: std::io::Error| {
            Refusal::new(ErrorCode::Unprocessable, format!("no pipe for the capture: {error}"))
        };
        let (reader, writer) =
            pipe_with(PipeFlags::CLOEXEC).map_err(|error| failed(error.into()))?;
        // A smaller one does as well.
        let _ = fcntl_setpipe_size(&reader, PIPE_SIZE);
        let reader = pipe::Receiver::from_owned_fd(reader).map_err(failed)?;
        let begun = self.reconciler.capture(spec, writer).await;
        begun.map_err(|reason| Refusal::new(ErrorCode::Unprocessable, reason))?;
        Ok(reader)
    }
}

/// Whose frames. One workload must be there, and somebody where all are meant; those of a network may come later.
fn meant(
    tx: &rusqlite::Transaction<'_>,
    request: &CaptureRequest,
) -> Result<CaptureScope, Refusal> {
    let network = match &request.network {
        Some(name) => Some(state::network_named(tx, name)?.id),
        None => None,
    };
    let nobody = |why: String| Err(Refusal::new(ErrorCode::NotFound, why + "; see: lichen ps"));
    let Some(name) = &request.workload else {
        return match network {
            Some(network) => Ok(CaptureScope::Network(network)),
            None if state::workloads(tx)?.iter().any(|row| row.is_placed()) => {
                Ok(CaptureScope::All)
            }
            None => nobody("there is no workload whose frames could be captured".to_owned()),
        };
    };
    let row = state::workload_named(tx, name)?;
    if row.is_placed() && network.is_none_or(|id| id == row.network) {
        Ok(CaptureScope::Port(row.id))
    } else {
        nobody(format!("`{name}` has no frames that could be captured there"))
    }
}

fn flow(asked: lichen_api::CapturedFlow) -> Result<CapturedFlow, Refusal> {
    let lichen_api::CapturedFlow { protocol, guest, remote } = asked;
    if guest.is_ipv4() != remote.is_ipv4() {
        return Err(Refusal::bad_request(format!(
            "the ends of a flow are both IPv4 or both IPv6, not {guest} and {remote}"
        )));
    }
    let protocol = match protocol {
        FlowProtocol::Tcp => command::FlowProtocol::Tcp,
        FlowProtocol::Udp => command::FlowProtocol::Udp,
        FlowProtocol::Icmp => command::FlowProtocol::Icmp,
    };
    Ok(CapturedFlow { protocol, guest, remote })
}
