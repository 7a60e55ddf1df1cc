//! Who may use the API: processes of the same user, outside of every workload.
//!
//! The directory's mode keeps other users out already; this holds when somebody opened it. A workload
//! runs under the user's own uid, so for it the network namespace decides.

use lichen_api::ErrorCode;
use tokio::net::UnixStream;

use crate::app::{App, Refusal};

/// Judges the process at the other end, as the kernel names it (SO_PEERCRED).
pub(super) async fn judge(stream: &UnixStream, app: &App) -> Result<(), Refusal> {
    let forbidden = |message: &str| Err(Refusal::new(ErrorCode::Forbidden, message));
    let Ok(peer) = stream.peer_cred() else {
        return forbidden("the kernel does not tell who you are");
    };
    if peer.uid() != rustix::process::getuid().as_raw() {
        tracing::warn!(uid = peer.uid(), "API refused to another user");
        return forbidden("this daemon serves the user who started it, and nobody else");
    }
    match peer.pid() {
        Some(pid) if pid > 0 && !app.is_in_workload(pid).await => Ok(()),
        pid => {
            tracing::warn!(?pid, "API refused to a workload");
            forbidden("workloads may not use this API")
        }
    }
}
