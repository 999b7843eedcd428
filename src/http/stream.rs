//! Streams: a session as the body of a response, for HTTP/2 and wherever a connection keeps its socket.
//!
//! The body asks for the next batch whenever hyper has room to write, so nothing piles up for a client that does
//! not read. Invariant: dropping the body, as hyper does when the client is gone, ends the session and leaves
//! its topics. Neighbour: `detached.rs` writes to the socket itself.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame};
use pin_project_lite::pin_project;

use crate::session::driver::{Driver, Turn};
use crate::session::{Batch, Session};

pin_project! {
    /// A `text/event-stream` body.
    pub(super) struct StreamBody {
        #[pin]
        driver: Driver,
        batch: Batch,
        chunks: std::vec::IntoIter<Bytes>,
        ended: bool,
    }
}

impl StreamBody {
    pub(super) fn new(session: Session) -> Self {
        let chunks = Vec::new().into_iter();
        Self { driver: Driver::new(session), batch: Batch::default(), chunks, ended: false }
    }
}

impl Body for StreamBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let mut this = self.project();
        loop {
            if let Some(chunk) = this.chunks.next() {
                return Poll::Ready(Some(Ok(Frame::data(chunk))));
            }
            if *this.ended {
                return Poll::Ready(None);
            }
            *this.ended = ready!(this.driver.as_mut().poll_turn(cx, this.batch)) == Turn::End;
            *this.chunks = this.batch.take().into_iter();
        }
    }
}
