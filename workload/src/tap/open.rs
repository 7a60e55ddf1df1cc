//! Asking the helper for a tap.

use std::os::fd::OwnedFd;

use super::{TapError, discard_tap};
use crate::role::Role;
use crate::spec::TapRequest;

/// Creates a workload's tap, or opens it again, and configures it.
///
/// The tap is persistent and delivers frames with a 12-byte virtio-net header; checksum and TCP
/// segmentation are left to whoever reads it. There is a descriptor for each of its queues, which does not block. It can be
/// open only once: a second open while a descriptor of the first lives is [`TapError::InterfaceBusy`]. One that is opened
/// again with one queue instead of several, or the other way round, is made anew.
///
/// Starts a child and blocks for some milliseconds.
pub fn open_tap(request: &TapRequest) -> Result<Vec<OwnedFd>, TapError> {
    let (mut helper, channel) = Role::NetnsHelper.start().map_err(TapError::helper)?;
    let answer = channel.send(request, &[]).and_then(|()| channel.receive());
    let _ = helper.wait();
    let (outcome, queues): (Result<(), TapError>, _) =
        answer.map_err(TapError::helper)?.ok_or(TapError::HelperGone)?;
    outcome?;
    let (opened, asked) = (queues.len(), usize::from(request.queues));
    if opened == asked {
        return Ok(queues);
    }
    // This process may have no more of them. What has failed leaves no interface behind, nor is any of it kept open.
    queues.first().into_iter().try_for_each(discard_tap).map_err(TapError::helper)?;
    Err(TapError::QueuesLost { opened, asked })
}
