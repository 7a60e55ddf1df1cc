//! The descriptor of a virtual machine's monitor: a connection that was upgraded takes exactly one, with one byte, and is
//! told what became of it.
//!
//! The client waits for the 101 before it sends, because hyper reads what comes sooner as bytes, and the kernel closes
//! descriptors that nobody has asked for. A client that says nothing costs its slot among the connections, where it
//! counts as idle, and for [`PATIENCE`] at most.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use hyper::upgrade::{OnUpgrade, Parts};
use hyper::{Response, StatusCode};
use hyper_util::rt::TokioIo;
use lichen_api::{DESCRIPTOR_UPGRADE, ErrorCode, Plugged, VERSION, VERSION_HEADER};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::body::Body;
use super::connections::Activity;
use crate::app::{App, FramePlace, Refusal};

/// Longest wait for the descriptor, and then for the answer to be taken.
const PATIENCE: Duration = Duration::from_secs(5);

/// The answer that changes the protocol; the place goes with it to whoever goes on with the connection.
pub(super) fn switching(place: FramePlace) -> Response<Body> {
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header("connection", "upgrade")
        .header("upgrade", DESCRIPTOR_UPGRADE)
        .header(VERSION_HEADER, VERSION)
        .extension(place)
        .body(Vec::new().into())
        .expect("constant headers are valid")
}

/// Goes on with a connection once it has been upgraded.
pub(super) async fn serve(
    app: Arc<App>,
    upgrade: OnUpgrade,
    place: FramePlace,
    activity: &Arc<Activity>,
) {
    // It has gone before it was told.
    let Ok(upgraded) = upgrade.await else { return };
    let Ok(Parts { io, read_buf, .. }) = upgraded.downcast::<TokioIo<UnixStream>>() else { return };
    let mut stream = io.into_inner();
    let name = place.name.clone();
    let result = match receive(&stream, &read_buf).await {
        Ok(None) => return,
        Ok(Some(descriptor)) => {
            let _busy = activity.busy();
            plug(app, place, descriptor).await
        }
        Err(refusal) => Err(refusal),
    };
    let answer = match result {
        Ok(plugged) => serde_json::to_vec(&plugged),
        Err(refusal) => {
            tracing::warn!(workload = name, reason = refusal.message, "descriptor refused");
            serde_json::to_vec(&refusal.into_body())
        }
    };
    let answer = answer.expect("our own shapes are always JSON");
    // Who does not read it does not learn it.
    let _ = timeout(PATIENCE, stream.write_all(&answer)).await;
}

/// In a task of its own: a client that hangs up does not leave half of it done.
async fn plug(app: Arc<App>, place: FramePlace, fd: OwnedFd) -> Result<Plugged, Refusal> {
    tokio::spawn(async move { app.plug(place, fd).await }).await.unwrap_or_else(|error| {
        tracing::error!(%error, "a descriptor could not be handled");
        Err(Refusal::new(
            ErrorCode::Internal,
            "the request failed by a fault of the daemon; see its log",
        ))
    })
}

/// The one descriptor; `None` when the client has hung up instead.
async fn receive(stream: &UnixStream, early: &[u8]) -> Result<Option<OwnedFd>, Refusal> {
    if !early.is_empty() {
        return Err(Refusal::bad_request(
            "something came before the connection was upgraded; wait for the answer 101, and send one byte and \
             the descriptor then",
        ));
    }
    let reading = stream.async_io(Interest::READABLE, || Message::take(stream));
    match timeout(PATIENCE, reading).await {
        Ok(Ok(message)) => message.descriptor(),
        Ok(Err(error)) => {
            tracing::debug!(%error, "a connection that was upgraded failed");
            Ok(None)
        }
        Err(_) => {
            Err(Refusal::bad_request(format!("no descriptor came within {} s", PATIENCE.as_secs())))
        }
    }
}

/// What a client has sent in one piece.
struct Message {
    bytes: usize,
    descriptors: Vec<OwnedFd>,
    /// More came than there was room for, or than we may have open; the kernel has closed them.
    is_cut: bool,
}

impl Message {
    /// Reads without waiting.
    fn take(stream: &UnixStream) -> io::Result<Self> {
        // Room for one more than there may be, so that it is noticed; there is room for two in any case.
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut buffer = [0; 2];
        let received = recvmsg(
            stream,
            &mut [IoSliceMut::new(&mut buffer)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
        )?;
        let mut descriptors = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        let is_cut = received.flags.contains(ReturnFlags::CTRUNC);
        Ok(Self { bytes: received.bytes, descriptors, is_cut })
    }

    /// The descriptor, where there is exactly one with exactly one byte; any others are closed.
    fn descriptor(mut self) -> Result<Option<OwnedFd>, Refusal> {
        match (self.bytes, self.descriptors.pop(), self.descriptors.is_empty()) {
            (0, None, _) => Ok(None),
            (1, Some(descriptor), true) if !self.is_cut => Ok(Some(descriptor)),
            (1, None, _) if self.is_cut => Err(Refusal::new(
                ErrorCode::Unprocessable,
                "the daemon has as many files open as it may, and cannot take a descriptor; raise the limit \
                 (ulimit -n) and restart it: lichen daemon restart",
            )),
            _ => Err(Refusal::bad_request(
                "exactly one byte and one descriptor (SCM_RIGHTS) are taken, in one message",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(bytes: usize, descriptors: usize, is_cut: bool) -> Result<Option<OwnedFd>, Refusal> {
        let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let descriptors = (0..descriptors).map(|_| null()).collect();
        Message { bytes, descriptors, is_cut }.descriptor()
    }

    #[test]
    fn one_byte_with_one_descriptor_is_taken_and_every_other_message_refused() {
        assert!(message(1, 1, false).unwrap().is_some());
        assert!(message(0, 0, false).unwrap().is_none(), "it has hung up");
        for (bytes, descriptors, is_cut) in
            [(1, 0, false), (2, 1, false), (1, 2, false), (1, 2, true), (1, 1, true), (2, 0, true)]
        {
            let refused = message(bytes, descriptors, is_cut).unwrap_err();
            assert_eq!(refused.code, ErrorCode::BadRequest, "{bytes} {descriptors} {is_cut}");
        }
    }

    #[test]
    fn a_descriptor_that_we_have_no_number_for_is_told_with_the_remedy() {
        let refused = message(1, 0, true).unwrap_err();
        assert_eq!(refused.code, ErrorCode::Unprocessable);
        assert!(refused.message.contains("ulimit -n"), "{}", refused.message);
    }
}
