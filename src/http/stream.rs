//! Streams: a session as the body of a response.
//!
//! The body asks its session for the next batch whenever hyper has room to write, so nothing piles up for a
//! client that does not read. Invariant: dropping the body, as hyper does when the client is gone, ends the
//! session and leaves its topics.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http_body::{Body, Frame};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::clock;
use crate::fanout::Pages;
use crate::fanout::pages::Heads;
use crate::log::LogError;
use crate::session::{Batch, Next, Now, Session};

/// A `text/event-stream` body.
pub(super) struct StreamBody {
    session: Session,
    pages: Arc<Pages>,
    batch: Batch,
    chunks: std::vec::IntoIter<Bytes>,
    read: Option<BoxFuture<'static, Result<Heads, LogError>>>,
    timer: Pin<Box<Sleep>>,
    ended: bool,
}

impl StreamBody {
    pub(super) fn new(session: Session, pages: Arc<Pages>) -> Self {
        Self {
            session,
            pages,
            batch: Batch::default(),
            chunks: Vec::new().into_iter(),
            read: None,
            timer: Box::pin(sleep_until(Instant::now())),
            ended: false,
        }
    }

    /// Steps the session until it has something to write, or nothing to do.
    fn poll_chunks(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            // First register, then look: what comes in between wakes the task again.
            self.session.mailbox().register(cx.waker());
            if let Some(read) = &mut self.read
                && let Poll::Ready(result) = read.poll_unpin(cx)
            {
                self.read = None;
                self.session.loaded(result, now());
            }
            let wake_at = match self.session.step(now(), &mut self.batch) {
                Next::Flush => return self.take_batch(),
                Next::Again => {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Next::End => {
                    self.ended = true;
                    return self.take_batch();
                }
                Next::Read(requests, wake_at) => {
                    self.read = Some(Arc::clone(&self.pages).read_heads(requests).boxed());
                    self.timer.as_mut().reset(wake_at);
                    continue;
                }
                Next::Wait(wake_at) => wake_at,
            };
            self.timer.as_mut().reset(wake_at);
            if self.timer.poll_unpin(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }

    fn take_batch(&mut self) -> Poll<()> {
        self.chunks = self.batch.take().into_iter();
        Poll::Ready(())
    }
}

impl Body for StreamBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        loop {
            if let Some(chunk) = self.chunks.next() {
                return Poll::Ready(Some(Ok(Frame::data(chunk))));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            std::task::ready!(self.poll_chunks(cx));
        }
    }
}

pub(super) fn now() -> Now {
    Now { instant: Instant::now(), unix_ms: clock::unix_ms(), jitter: rand::random() }
}
