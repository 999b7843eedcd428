//! Mailboxes: how the rest of the node reaches a session: whose it is, a waker and orders to end.
//!
//! Invariant: an order is seen by the next poll after [`Mailbox::close`] or [`Mailbox::cut`] returns; the first
//! reason to close stays.

use std::task::Waker;

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;

use crate::auth::Caller;
use crate::sse::ClosingReason;

/// One session's.
pub struct Mailbox {
    caller: Caller,
    waker: AtomicWaker,
    orders: Mutex<Orders>,
}

#[derive(Clone, Copy, Default)]
struct Orders {
    closing: Option<ClosingReason>,
    cut: bool,
}

/// Of a session that anybody may have.
impl Default for Mailbox {
    fn default() -> Self {
        Self::of(Caller::anybody(None))
    }
}

impl Mailbox {
    /// For a session of this caller's.
    pub fn of(caller: Caller) -> Self {
        Self { caller, waker: AtomicWaker::new(), orders: Mutex::default() }
    }

    /// Whose session it is.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// Who is woken from now on. Register first, then look at what changed.
    pub fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    /// There may be something new.
    pub fn wake(&self) {
        self.waker.wake();
    }

    /// The session is to end, and to say why.
    pub fn close(&self, reason: ClosingReason) {
        self.orders.lock().closing.get_or_insert(reason);
        self.wake();
    }

    /// Why the session is to end, if it is.
    pub fn closing(&self) -> Option<ClosingReason> {
        self.orders.lock().closing
    }

    /// The connection is to end at once, whatever it still has to write.
    pub fn cut(&self) {
        self.orders.lock().cut = true;
        self.wake();
    }

    /// Whether the connection is to end at once.
    pub fn is_cut(&self) -> bool {
        self.orders.lock().cut
    }
}
