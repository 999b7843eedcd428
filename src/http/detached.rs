//! Detached streams: a session that writes to its socket itself, once HTTP has nothing more to say.
//!
//! One small future per connection. It holds a session, a socket and a timer, and a batch only while the socket
//! does not take it: idle, nothing else is allocated. Invariants: bytes leave in the order in which the session
//! made them, a write that stops in the middle of a frame goes on there; what is sent as the end of the body is
//! the end of the session, and nothing else looks like it (`framing.rs`); a batch that waits and is not begun is not begun
//! any more once the right to it has ended; a client that takes nothing for
//! `write_timeout` is dropped, one that takes little is not; the last bytes are followed by the end of our
//! direction, and what the client still sends is read, because closing a socket with unread bytes resets the
//! connection and destroys what was written. Neighbours: `handover.rs` gets the socket, `stream.rs` does the
//! same as a body.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use pin_project_lite::pin_project;
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::framing::{Framing, Out};
use super::handover::Parked;
use super::socket::{self, LINGER};
use crate::session::Batch;
use crate::session::driver::{self, Driver, Turn};

/// After so many bytes a connection lets others go first.
const TURN_BYTES_MAX: usize = 64 * 1024;

pin_project! {
    /// One connection.
    pub(super) struct Detached {
        #[pin]
        driver: Driver,
        stream: TcpStream,
        stage: Stage,
        framing: Framing,
    }
}

/// Where a connection stands. While it is open it has nothing to write.
enum Stage {
    /// Only the head is there; what the session has to say at once goes with it.
    Head(Box<Bytes>),
    Open,
    /// The socket does not take what is there.
    Blocked(Box<Blocked>),
    /// All is written; the client has until then to end its direction.
    Lingering(Instant),
}

struct Blocked {
    out: Out,
    /// Since when nothing has been taken.
    since: Instant,
}

impl Detached {
    pub(super) fn new(stream: TcpStream, parked: Parked) -> Self {
        let Parked { head, framing, session } = parked;
        Self { driver: Driver::new(session), stream, stage: Stage::Head(Box::new(head)), framing }
    }

    fn poll_stream(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut this = self.project();
        let mut batch = Batch::default();
        let mut written = 0;
        let mut rest_until = None;
        loop {
            if let Some(at) = rest_until.take() {
                // Whoever registered before it looked is woken by what came since.
                ready!(this.driver.as_mut().poll_until(cx, at));
            }
            let (mut out, mut since) = match std::mem::replace(this.stage, Stage::Open) {
                Stage::Head(head) => {
                    let turn = this.driver.as_mut().poll_turn(cx, &mut batch);
                    let is_last = turn == Poll::Ready(Turn::End);
                    (this.framing.frame(batch.take(), is_last).after(*head), None)
                }
                Stage::Open if written >= TURN_BYTES_MAX => {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Stage::Open => {
                    let turn = ready!(this.driver.as_mut().poll_turn(cx, &mut batch));
                    if let Turn::WriteAndWait(at) = turn {
                        rest_until = Some(at);
                    }
                    (this.framing.frame(batch.take(), turn == Turn::End), None)
                }
                Stage::Blocked(mut blocked) => {
                    // What waited for the client may have outlasted the right to it.
                    if this.driver.session().is_barred(driver::now())
                        && let Some(head) = blocked.out.take_back()
                    {
                        *this.stage = Stage::Head(Box::new(head));
                        continue;
                    }
                    (blocked.out, Some(blocked.since))
                }
                Stage::Lingering(until) => {
                    *this.stage = Stage::Lingering(until);
                    return this.driver.as_mut().poll_until(cx, until).map(Ok);
                }
            };
            while !out.is_empty() {
                let Poll::Ready(count) = out.poll_write(cx, this.stream)? else {
                    let since = since.unwrap_or_else(Instant::now);
                    *this.stage = Stage::Blocked(Box::new(Blocked { out, since }));
                    let session = this.driver.session();
                    session.mailbox().register(cx.waker());
                    let give_up_at = since + session.options().write_timeout;
                    ready!(this.driver.as_mut().poll_until(cx, give_up_at));
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                };
                written += count;
                since = None;
            }
            if out.is_last() {
                ready!(Pin::new(&mut *this.stream).poll_shutdown(cx))?;
                *this.stage = Stage::Lingering(Instant::now() + LINGER);
            }
        }
    }
}

impl Future for Detached {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let polled = match socket::poll_ended(self.as_mut().project().stream, cx) {
            Poll::Ready(gone) => Poll::Ready(gone),
            Poll::Pending => self.as_mut().poll_stream(cx),
        };
        // Looked at last: whoever waits has registered by now, so an order that comes later wakes the task again.
        if polled.is_pending() && self.driver.session().mailbox().is_cut() {
            return Poll::Ready(());
        }
        polled.map(|result| {
            if let Err(error) = result {
                tracing::debug!(%error, "an event stream ended with an error");
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What every subscriber costs, with about 100 bytes that the runtime adds to the future; see the table in
    /// `docs/performance.md`. A task is rounded up to a multiple of 128 bytes.
    #[test]
    fn a_connection_is_a_small_future() {
        assert!(size_of::<Detached>() <= 400, "{} bytes", size_of::<Detached>());
    }
}
