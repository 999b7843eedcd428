//! Driving: what a session needs from around it to go on: being woken, pages, and the time.
//!
//! Whoever writes for a subscriber, as a body or to a socket, asks its [`Driver`] for the next batch when it has
//! room for one. Invariants: the driver registers before it looks, so no wake is lost; a session that is served from
//! the log waits for its turn before each batch, a live one never does; nothing is allocated for a session that has
//! nothing to do. Neighbours: `fanout/pace.rs` hands out turns, `http/stream.rs` and `http/detached.rs` write.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};

use super::{Batch, Next, Now, Session};
use crate::clock;
use crate::fanout::pace;
use crate::fanout::pages::Heads;
use crate::log::LogError;

pin_project! {
    /// A session, and what it waits for.
    pub struct Driver {
        session: Session,
        // Boxed, because hardly any session is behind.
        need: Option<Box<Need>>,
        #[pin]
        timer: Sleep,
    }
}

/// What a session that is behind has to wait for.
enum Need {
    /// The pages that it asked for.
    Pages(BoxFuture<'static, Result<Heads, LogError>>),
    /// Its turn.
    Turn(pace::Turn),
}

/// What to do with a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Write it, then ask again.
    Write,
    /// Write it; nothing follows until the task is woken, or until this time.
    WriteAndWait(Instant),
    /// Write it, then end the stream.
    End,
}

impl Driver {
    /// Drives `session`.
    pub fn new(session: Session) -> Self {
        Self { session, need: None, timer: sleep_until(Instant::now()) }
    }

    /// The session.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Steps the session until it has put something into the batch, which must be empty, or has ended.
    pub fn poll_turn(self: Pin<&mut Self>, cx: &mut Context<'_>, batch: &mut Batch) -> Poll<Turn> {
        let mut this = self.project();
        // First register, then look: what comes in between wakes the task again.
        this.session.mailbox().register(cx.waker());
        loop {
            match this.need.as_deref_mut() {
                Some(Need::Pages(read)) => {
                    if let Poll::Ready(result) = read.poll_unpin(cx) {
                        *this.need = None;
                        this.session.loaded(result, now());
                        continue;
                    }
                }
                Some(Need::Turn(turn)) => {
                    // An error says that the node stops.
                    if turn.poll_unpin(cx).is_pending() && !this.session.is_to_close(now()) {
                        return Poll::Pending;
                    }
                    *this.need = None;
                }
                None if this.session.is_behind() => {
                    *this.need = Some(Box::new(Need::Turn(this.session.hub().pace.turn())));
                    continue;
                }
                None => {}
            }
            let wake_at = match this.session.step(now(), batch) {
                Next::Flush => return Poll::Ready(Turn::Write),
                Next::FlushAndWait(wake_at) => return Poll::Ready(Turn::WriteAndWait(wake_at)),
                Next::End => {
                    *this.need = None;
                    return Poll::Ready(Turn::End);
                }
                Next::Again => {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Next::Read(requests) => {
                    let read = Arc::clone(&this.session.hub().pages).read_heads(requests).boxed();
                    *this.need = Some(Box::new(Need::Pages(read)));
                    continue;
                }
                Next::Wait(wake_at) => wake_at,
            };
            ready!(poll_until(this.timer.as_mut(), cx, wake_at));
        }
    }

    /// Waits on the session's timer, for a writer that asks for no batch in the meantime.
    pub fn poll_until(self: Pin<&mut Self>, cx: &mut Context<'_>, at: Instant) -> Poll<()> {
        poll_until(self.project().timer, cx, at)
    }
}

/// Ready when `at` has come. A timer that is set to an earlier time stays as it is and is looked at then: most
/// deadlines move on before they come, and setting a timer costs more than a look.
fn poll_until(mut timer: Pin<&mut Sleep>, cx: &mut Context<'_>, at: Instant) -> Poll<()> {
    if at < timer.deadline() {
        timer.as_mut().reset(at);
    }
    loop {
        ready!(timer.as_mut().poll(cx));
        if at <= timer.deadline() {
            return Poll::Ready(());
        }
        timer.as_mut().reset(at);
    }
}

/// This moment.
pub fn now() -> Now {
    Now { instant: Instant::now(), unix_ms: clock::unix_ms(), jitter: rand::random() }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;
    use std::time::Duration;

    use super::*;

    /// Seen to fail with a timer that is not set anew when it rings early, and with one that is never set back.
    #[tokio::test(start_paused = true)]
    async fn a_timer_rings_neither_early_nor_late_however_its_deadline_moves() {
        let start = Instant::now();
        let mut timer = pin!(sleep_until(start));
        let rings = async |mut timer: Pin<&mut Sleep>, seconds: &[u64]| {
            for at in &seconds[..seconds.len() - 1] {
                let at = start + Duration::from_secs(*at);
                let poll = poll_fn(|cx| Poll::Ready(poll_until(timer.as_mut(), cx, at)));
                assert!(poll.await.is_pending());
            }
            let last = start + Duration::from_secs(seconds[seconds.len() - 1]);
            poll_fn(|cx| poll_until(timer.as_mut(), cx, last)).await;
            start.elapsed().as_secs()
        };
        assert_eq!(rings(timer.as_mut(), &[1, 5, 3]).await, 3, "set to 1, which is earlier than what counts");
        assert_eq!(rings(timer.as_mut(), &[20, 9, 10]).await, 10, "set back");
        assert_eq!(rings(timer.as_mut(), &[2]).await, 10, "what has passed rings at once");
    }
}
