//! A descriptor that travels over the API: one end of a connected pair of unix sockets, whose other end a virtual
//! machine's monitor holds.
//!
//! HTTP carries bytes only, so the connection is upgraded (RFC 9110, 7.8): a `POST` of
//! `/v1/workloads/NAME/descriptor` with `Upgrade: lichen-descriptor` is answered by 101, and only then the client sends
//! one byte, with one descriptor beside it (unix(7), `SCM_RIGHTS`). What became of it comes back as JSON, a [`Plugged`]
//! or an [`ErrorBody`], and then the end. What is sent before the 101 is read as bytes, and its descriptors are lost.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};

use http_body_util::Full;
use hyper::{Method, StatusCode};
use hyper_util::rt::TokioIo;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketType, getpeername,
    sendmsg, sockopt,
};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::UnixStream;

use crate::client::{PATIENCE, segment, whole};
use crate::{Client, ClientError, ErrorBody, VmAttachment};

/// What a connection is upgraded to for a descriptor.
pub const DESCRIPTOR_UPGRADE: &str = "lichen-descriptor";

/// Longest answer that is read after the upgrade, in bytes.
const MAX_ANSWER: u64 = 64 * 1024;

/// What became of a descriptor: a virtual machine is on its network by it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plugged {
    /// Its name.
    pub plugged: String,
    /// How its frames come.
    pub attachment: VmAttachment,
}

/// Why no frames can come over a descriptor. Reads on after "descriptor 3 …".
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnfitDescriptor {
    /// A file, a pipe, a terminal.
    #[error("is not a socket; pass one end of socketpair(AF_UNIX, SOCK_STREAM or SOCK_DGRAM, 0)")]
    NotASocket,
    /// Of TCP, for example.
    #[error("is a socket, but not a unix socket; pass one end of socketpair(AF_UNIX, …)")]
    OtherFamily,
    /// `SOCK_SEQPACKET`, for example.
    #[error("is a unix socket of another type; pass one of SOCK_STREAM or SOCK_DGRAM")]
    OtherType,
    /// Bound or listening, perhaps.
    #[error(
        "is a unix socket that is not connected, or whose other end is closed; pass one end of socketpair(2), and \
         keep the other one open for the virtual machine"
    )]
    NotConnected,
    /// The kernel would not say.
    #[error("cannot be looked at: {0}")]
    Unknown(Errno),
}

/// How frames come over a descriptor, and so what its place must have been made for.
pub fn attachment_of(descriptor: impl AsFd) -> Result<VmAttachment, UnfitDescriptor> {
    let descriptor = descriptor.as_fd();
    let family = sockopt::socket_domain(descriptor).map_err(|error| match error {
        Errno::NOTSOCK => UnfitDescriptor::NotASocket,
        other => UnfitDescriptor::Unknown(other),
    })?;
    if family != AddressFamily::UNIX {
        return Err(UnfitDescriptor::OtherFamily);
    }
    let attachment = match sockopt::socket_type(descriptor).map_err(UnfitDescriptor::Unknown)? {
        SocketType::STREAM => VmAttachment::Stream,
        SocketType::DGRAM => VmAttachment::Dgram,
        _ => return Err(UnfitDescriptor::OtherType),
    };
    match getpeername(descriptor) {
        // An end of a pair has no name.
        Ok(_) => Ok(attachment),
        Err(Errno::NOTCONN) => Err(UnfitDescriptor::NotConnected),
        Err(other) => Err(UnfitDescriptor::Unknown(other)),
    }
}

impl Client {
    /// Has the monitor of a virtual machine served that holds the other end of `descriptor`. The daemon has a
    /// descriptor of its own when this returns.
    pub async fn plug(
        &self,
        name: &str,
        descriptor: BorrowedFd<'_>,
    ) -> Result<Plugged, ClientError> {
        tokio::time::timeout(PATIENCE, self.hand_over(name, descriptor))
            .await
            .map_err(|_| ClientError::TimedOut)?
    }

    async fn hand_over(
        &self,
        name: &str,
        descriptor: BorrowedFd<'_>,
    ) -> Result<Plugged, ClientError> {
        let (mut sender, connection) = self.connect().await?;
        let connection = tokio::spawn(connection.with_upgrades());
        let path = format!("/v1/workloads/{}/descriptor", segment(name));
        let request = Self::head(Method::POST, &path)
            .header("connection", "upgrade")
            .header("upgrade", DESCRIPTOR_UPGRADE)
            .body(Full::default())
            .map_err(|error| ClientError::Answer(error.to_string()))?;
        let mut response = sender.send_request(request).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(whole(response, &connection).await?.refusal());
        }
        let upgraded = hyper::upgrade::on(&mut response).await?;
        let parts = upgraded
            .downcast::<TokioIo<UnixStream>>()
            .map_err(|_| ClientError::Answer("the connection is another one".to_owned()))?;
        let mut stream = parts.io.into_inner();
        // One that has hung up may have said why.
        let sent = send(&stream, descriptor).await;
        let mut answer = parts.read_buf.to_vec();
        (&mut stream)
            .take(MAX_ANSWER)
            .read_to_end(&mut answer)
            .await
            .map_err(ClientError::Broken)?;
        if answer.is_empty() {
            sent.map_err(ClientError::Broken)?;
            return Err(ClientError::Broken(io::ErrorKind::UnexpectedEof.into()));
        }
        understand(&answer)
    }
}

fn understand(answer: &[u8]) -> Result<Plugged, ClientError> {
    match serde_json::from_slice::<ErrorBody>(answer) {
        Ok(ErrorBody { error }) => {
            Err(ClientError::Refused { code: error.code, message: error.message })
        }
        Err(_) => {
            serde_json::from_slice(answer).map_err(|error| ClientError::Answer(error.to_string()))
        }
    }
}

/// Sends one byte with a descriptor beside it.
async fn send(stream: &UnixStream, descriptor: BorrowedFd<'_>) -> io::Result<()> {
    let descriptors = [descriptor];
    let message = || {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(
            ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)),
            "there is room for it"
        );
        Ok(sendmsg(stream, &[IoSlice::new(&[0])], &mut ancillary, SendFlags::NOSIGNAL)?)
    };
    stream.async_io(Interest::WRITABLE, message).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

    use rustix::net::{SocketFlags, socketpair};

    use super::*;

    #[test]
    fn each_end_of_a_pair_is_what_its_type_says() {
        let (stream, _other) = UnixStream::pair().unwrap();
        assert_eq!(attachment_of(&stream), Ok(VmAttachment::Stream));
        let (datagram, other) = UnixDatagram::pair().unwrap();
        assert_eq!(attachment_of(&datagram), Ok(VmAttachment::Dgram));
        // One that has gone is noticed later, as of any monitor.
        drop(other);
        assert_eq!(attachment_of(&datagram), Ok(VmAttachment::Dgram));
    }

    #[test]
    fn whatever_else_a_descriptor_may_be_is_refused_by_its_name() {
        let null = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(attachment_of(&null), Err(UnfitDescriptor::NotASocket));
        let (pipe, _writer) = std::io::pipe().unwrap();
        assert_eq!(attachment_of(&pipe), Err(UnfitDescriptor::NotASocket));

        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(attachment_of(&tcp), Err(UnfitDescriptor::OtherFamily));

        let (family, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
        let packets = socketpair(family, SocketType::SEQPACKET, flags, None).unwrap();
        assert_eq!(attachment_of(&packets.0), Err(UnfitDescriptor::OtherType));

        let path = std::env::temp_dir().join(format!("lichen-descriptor-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listening = OwnedFd::from(UnixListener::bind(&path).unwrap());
        std::fs::remove_file(&path).unwrap();
        assert_eq!(attachment_of(&listening), Err(UnfitDescriptor::NotConnected));
        let unbound = UnixDatagram::unbound().unwrap();
        assert_eq!(attachment_of(&unbound), Err(UnfitDescriptor::NotConnected));
    }

    #[test]
    fn an_answer_after_the_upgrade_is_a_success_or_a_refusal() {
        let plugged = understand(br#"{"plugged":"db","attachment":"dgram"}"#).unwrap();
        assert_eq!((plugged.plugged.as_str(), plugged.attachment), ("db", VmAttachment::Dgram));
        let refused = understand(br#"{"error":{"code":"conflict","message":"busy"}}"#).unwrap_err();
        assert_eq!(refused.to_string(), "busy");
        assert!(matches!(understand(b"{}"), Err(ClientError::Answer(_))));
    }
}
