//! Virtual machines whose monitors come by a descriptor that somebody passes.

use std::os::fd::OwnedFd;

use lichen_api::{ErrorCode, Plugged, VmAttachment, WorkloadKind, attachment_of};
use lichen_netstack::ids::PortId;

use super::{App, Refusal};
use crate::reconcile::NotPlugged;
use crate::state;

/// A place whose guest hands over whole frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FramePlace {
    /// Number of its attachment.
    pub id: PortId,
    /// Its name.
    pub name: String,
    /// How its frames come: as a stream, or as datagrams.
    pub attachment: VmAttachment,
}

impl App {
    /// The place of that name, once the datapath has it.
    pub async fn frame_place(&self, name: String) -> Result<FramePlace, Refusal> {
        let row = self.store.transact(move |tx| state::workload_named(tx, &name)).await?;
        let unfit = |message: String| Err(Refusal::new(ErrorCode::Unprocessable, message));
        let attachment = match (row.kind, row.attachment) {
            (WorkloadKind::Vm, Some(it @ (VmAttachment::Stream | VmAttachment::Dgram))) => it,
            (WorkloadKind::Vm, _) => {
                return unfit(format!(
                    "`{0}` takes vhost-user at its socket, and no descriptor; make its place anew: \
                     lichen vm rm {0}; lichen vm add {0} --attach stream (or dgram)",
                    row.name
                ));
            }
            (WorkloadKind::Run | WorkloadKind::Attach, _) => {
                return unfit(format!(
                    "workload `{}` is not a virtual machine; make a place for one: lichen vm add NAME \
                     --attach stream (or dgram)",
                    row.name
                ));
            }
        };
        self.port_in_force(row.id).await?;
        Ok(FramePlace { id: row.id, name: row.name, attachment })
    }

    /// Has whoever holds the other end of `descriptor` served as the guest of a place.
    pub async fn plug(&self, place: FramePlace, descriptor: OwnedFd) -> Result<Plugged, Refusal> {
        let FramePlace { id, name, attachment } = place;
        // The client may have looked as well, at what it says that it has sent.
        let found = attachment_of(&descriptor)
            .map_err(|error| Refusal::bad_request(format!("what was passed {error}")))?;
        let unprocessable = |message| Err(Refusal::new(ErrorCode::Unprocessable, message));
        if found != attachment {
            let (what, wanted) = (socket_type(found), socket_type(attachment));
            let how = found.name();
            return unprocessable(format!(
                "what was passed is a {what} socket, and `{name}` takes {wanted}; pass one of that type, or make \
                 a place with: lichen vm add NAME --attach {how}"
            ));
        }
        match self.reconciler.plug(id, descriptor).await {
            Ok(()) => {
                tracing::info!(port = %id, workload = name, "descriptor plugged");
                Ok(Plugged { plugged: name, attachment })
            }
            Err(NotPlugged::Busy) => Err(Refusal::new(
                ErrorCode::Conflict,
                format!(
                    "a virtual machine is connected to `{name}` already; end it first, or give this one a place of \
                     its own: lichen vm add NAME --attach {}",
                    attachment.name()
                ),
            )),
            Err(NotPlugged::Refused(reason)) => unprocessable(reason),
            Err(NotPlugged::NoDatapath) => Err(Refusal::new(
                ErrorCode::Unavailable,
                "the datapath has just ended and is being started again; say it again, and see: lichen status",
            )),
        }
    }
}

/// As socket(2) calls it.
fn socket_type(attachment: VmAttachment) -> &'static str {
    match attachment {
        VmAttachment::Dgram => "SOCK_DGRAM",
        VmAttachment::Stream | VmAttachment::VhostUser => "SOCK_STREAM",
    }
}
