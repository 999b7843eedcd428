//! Reading stored bytes: fixed fields from the front, and one error for bytes that contradict the layout.
//!
//! Invariant: no input panics. Used by every file here that stores something (`record.rs`,
//! `channel_state.rs`, `partition_state.rs`, `idempotency.rs`, `due.rs`).

use crate::id::StreamId;

/// Stored bytes that no encoder of this version wrote. Says what was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {0}")]
pub(super) struct Corrupt(pub(super) &'static str);

/// Takes fields from the front of stored bytes.
pub(super) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The next `n` bytes; `what` names them in the error.
    pub(super) fn bytes(&mut self, n: usize, what: &'static str) -> Result<&'a [u8], Corrupt> {
        let (head, rest) = self.0.split_at_checked(n).ok_or(Corrupt(what))?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Corrupt> {
        let (head, rest) = self.0.split_first_chunk().ok_or(Corrupt(what))?;
        self.0 = rest;
        Ok(*head)
    }

    pub(super) fn u8(&mut self, what: &'static str) -> Result<u8, Corrupt> {
        self.array(what).map(u8::from_be_bytes)
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, Corrupt> {
        self.array(what).map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self, what: &'static str) -> Result<u64, Corrupt> {
        self.array(what).map(u64::from_be_bytes)
    }

    pub(super) fn id(&mut self, what: &'static str) -> Result<StreamId, Corrupt> {
        StreamId::from_be_bytes(self.array(what)?).ok_or(Corrupt(what))
    }

    /// `len` bytes of UTF-8.
    pub(super) fn text(&mut self, len: usize, what: &'static str) -> Result<&'a str, Corrupt> {
        std::str::from_utf8(self.bytes(len, what)?).map_err(|_| Corrupt(what))
    }

    /// What is left.
    pub(super) fn rest(self) -> &'a [u8] {
        self.0
    }

    /// Refuses bytes that nobody took.
    pub(super) fn end(self, what: &'static str) -> Result<(), Corrupt> {
        if self.0.is_empty() { Ok(()) } else { Err(Corrupt(what)) }
    }
}
