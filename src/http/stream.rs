//! Streams: a session as the body of a response, for HTTP/2 and wherever a connection keeps its socket.
//!
//! The body asks for the next batch whenever hyper has room to write, so nothing piles up for a client that does
//! not read. Invariants: dropping the body, as hyper does when the client is gone, ends the session and leaves
//! its topics; of a batch that waits for the client nothing is begun any more once the right to it has ended.
//! Neighbour: `detached.rs` writes to the socket itself.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame};
use pin_project_lite::pin_project;

use crate::session::driver::{self, Driver, Turn};
use crate::session::{Batch, Session};

pin_project! {
    /// A `text/event-stream` body.
    pub(super) struct StreamBody {
        #[pin]
        driver: Driver,
        batch: Batch,
        chunks: std::vec::IntoIter<Bytes>,
        // What was handed over last ended an event; the `id:` line of one is no end.
        is_between_events: bool,
        ended: bool,
    }
}

impl StreamBody {
    pub(super) fn new(session: Session) -> Self {
        let chunks = Vec::new().into_iter();
        let driver = Driver::new(session);
        Self { driver, batch: Batch::default(), chunks, is_between_events: true, ended: false }
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
            let has_more = !this.chunks.as_slice().is_empty();
            if has_more && *this.is_between_events && this.driver.session().is_barred(driver::now()) {
                *this.chunks = Vec::new().into_iter();
            }
            if let Some(chunk) = this.chunks.next() {
                *this.is_between_events = chunk.ends_with(b"\n\n");
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
