//! Asking the helper for a tap.

use std::os::fd::OwnedFd;

use super::TapError;
use crate::role::Role;
use crate::spec::TapRequest;

/// Creates a workload's tap, or opens it again, and configures it.
///
/// The tap is persistent and delivers frames with a 12-byte virtio-net header; checksum and TCP
/// segmentation are left to whoever reads it. Its descriptor does not block. It can be open only once:
/// a second open while the first lives is [`TapError::InterfaceBusy`].
///
/// Starts a child and blocks for some milliseconds.
pub fn open_tap(request: &TapRequest) -> Result<OwnedFd, TapError> {
    let (mut helper, channel) = Role::NetnsHelper.start().map_err(TapError::helper)?;
    let answer = channel.send(request, &[]).and_then(|()| channel.receive());
    let _ = helper.wait();
    let (outcome, mut descriptors): (Result<(), TapError>, _) =
        answer.map_err(TapError::helper)?.ok_or(TapError::HelperGone)?;
    outcome?;
    descriptors.pop().ok_or(TapError::HelperGone)
}
