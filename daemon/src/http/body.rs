//! What an answer consists of: bytes that are there, or what comes out of a pipe until it is closed.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http_body_util::Full;
use hyper::body::{Body as HyperBody, Bytes, Frame, SizeHint};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::unix::pipe;

/// Bytes taken from a pipe at once.
const PIECE: usize = 64 * 1024;

/// The body of an answer.
pub(super) enum Body {
    /// Short and whole.
    Whole(Full<Bytes>),
    /// As long as somebody writes; the pipe is closed when nobody reads the answer any more.
    Pipe(pipe::Receiver),
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Whole(Full::new(Bytes::from(bytes)))
    }
}

impl HyperBody for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match self.get_mut() {
            Self::Whole(whole) => Pin::new(whole).poll_frame(cx).map_err(|never| match never {}),
            Self::Pipe(pipe) => {
                let mut piece = vec![0; PIECE];
                let mut buffer = ReadBuf::new(&mut piece);
                if let Err(error) = ready!(Pin::new(pipe).poll_read(cx, &mut buffer)) {
                    return Poll::Ready(Some(Err(error)));
                }
                let len = buffer.filled().len();
                piece.truncate(len);
                Poll::Ready((len > 0).then(|| Ok(Frame::data(Bytes::from(piece)))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(whole) => whole.is_end_stream(),
            Self::Pipe(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(whole) => whole.size_hint(),
            Self::Pipe(_) => SizeHint::new(),
        }
    }
}
