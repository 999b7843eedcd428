//! Mailboxes: how the rest of the node reaches a session: a waker and an order to close.
//!
//! Invariant: an order to close is seen by the next poll after [`Mailbox::close`] returns; the first reason stays.

use std::task::Waker;

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;

use crate::sse::ClosingReason;

/// One session's.
#[derive(Default)]
pub struct Mailbox {
    waker: AtomicWaker,
    closing: Mutex<Option<ClosingReason>>,
}

impl Mailbox {
    /// Who is woken from now on. Register first, then look at what changed.
    pub fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    /// There may be something new.
    pub fn wake(&self) {
        self.waker.wake();
    }

    /// The session is to end.
    pub fn close(&self, reason: ClosingReason) {
        self.closing.lock().get_or_insert(reason);
        self.wake();
    }

    /// Why the session is to end, if it is.
    pub fn closing(&self) -> Option<ClosingReason> {
        *self.closing.lock()
    }
}
