//! What an answer consists of: bytes that are there, or what comes out of a pipe until it is closed.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http_body_util::Full;
use hyper::body::{Body as HyperBody, Bytes, Frame, SizeHint};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::unix::pipe;

use super::connections::Busy;

/// Bytes taken from a pipe at once.
const PIECE: usize = 64 * 1024;

/// The body of an answer.
pub(super) struct Body {
    content: Content,
    /// Dropped with it.
    _busy: Option<Busy>,
}

enum Content {
    /// Short and whole.
    Whole(Full<Bytes>),
    /// As long as somebody writes; the pipe is closed when nobody reads the answer any more.
    Pipe(pipe::Receiver),
}

impl Body {
    /// For as long as it is being sent, its connection is not idle.
    pub(super) fn with(self, busy: Busy) -> Self {
        Self { _busy: Some(busy), ..self }
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Self { content: Content::Whole(Full::new(Bytes::from(bytes))), _busy: None }
    }
}

impl From<pipe::Receiver> for Body {
    fn from(pipe: pipe::Receiver) -> Self {
        Self { content: Content::Pipe(pipe), _busy: None }
    }
}

impl HyperBody for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match &mut self.get_mut().content {
            Content::Whole(whole) => Pin::new(whole).poll_frame(cx).map_err(|never| match never {}),
            Content::Pipe(pipe) => {
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
        match &self.content {
            Content::Whole(whole) => whole.is_end_stream(),
            Content::Pipe(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Whole(whole) => whole.size_hint(),
            Content::Pipe(_) => SizeHint::new(),
        }
    }
}
