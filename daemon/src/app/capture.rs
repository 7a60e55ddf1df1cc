//! Captures: which ports are meant, and the pipe that their frames come by.

use lichen_api::{CaptureRequest, ErrorCode, MAX_SNAPLEN};
use lichen_netstack::ids::PortId;
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
        let ports = self.store.transact(move |tx| meant(tx, &request)).await?;
        if ports.is_empty() {
            return Err(Refusal::new(
                ErrorCode::NotFound,
                "there is no workload whose frames could be captured; see: lichen ps",
            ));
        }
        let failed = |error: std::io::Error| {
            Refusal::new(ErrorCode::Unprocessable, format!("no pipe for the capture: {error}"))
        };
        let (reader, writer) =
            pipe_with(PipeFlags::CLOEXEC).map_err(|error| failed(error.into()))?;
        // A smaller one does as well.
        let _ = fcntl_setpipe_size(&reader, PIPE_SIZE);
        let reader = pipe::Receiver::from_owned_fd(reader).map_err(failed)?;
        let begun = self.reconciler.capture(ports, snaplen, writer).await;
        begun.map_err(|reason| Refusal::new(ErrorCode::Unprocessable, reason))?;
        Ok(reader)
    }
}

fn meant(tx: &rusqlite::Transaction<'_>, request: &CaptureRequest) -> Result<Vec<PortId>, Refusal> {
    let named = match &request.workload {
        Some(name) => Some(state::workload_named(tx, name)?.id),
        None => None,
    };
    let network = match &request.network {
        Some(name) => Some(state::network_named(tx, name)?.id),
        None => None,
    };
    let rows = state::workloads(tx)?.into_iter().filter(|row| {
        row.is_placed()
            && named.is_none_or(|id| id == row.id)
            && network.is_none_or(|id| id == row.network)
    });
    Ok(rows.map(|row| row.id).collect())
}
