//! The sweep: removes from disk what has expired, and what purges left behind, a bounded piece at a time.
//!
//! Nothing here is needed for correct answers: reads go by ages and by `first`, idempotency keys by their
//! expiry. So a piece is committed without waiting for the disk; after a crash it is done again.
//!
//! Invariants: an event that goes is older than its channel's maximum age, or was purged; a channel's figures
//! change in the same batch as its events. Runs on the writer thread, between groups.

use fjall::{OwnedWriteBatch, Readable, Snapshot};

use super::channel_state::{ChannelState, expired_at};
use super::due::{self, Due};
use super::idempotency::UsedKey;
use super::record;
use super::store::{Store, StoreError};
use crate::channel::Channel;
use crate::id::StreamId;

/// A busy channel has events that expire all the time; it is looked at once in so many milliseconds.
const REVISIT_MS: u64 = 1_000;

/// Reads the due index from where it was left.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    /// No entry is due before this time: what came before was removed, and reading there again would step
    /// over the remains.
    due_from_ms: u64,
}

/// One piece of work.
struct Piece<'a> {
    store: &'a Store,
    view: Snapshot,
    now_ms: u64,
    batch: OwnedWriteBatch,
    /// How many more entries may be removed.
    budget: usize,
}

impl Sweep {
    /// Takes note of an entry that was added.
    pub(super) fn note(&mut self, due_ms: u64) {
        self.due_from_ms = self.due_from_ms.min(due_ms);
    }

    /// Removes about `budget` entries. Answers whether more is due.
    pub(super) fn run(&mut self, store: &Store, now_ms: u64, budget: usize) -> Result<bool, StoreError> {
        let mut piece = Piece { store, view: store.snapshot(), now_ms, batch: store.batch(), budget };
        let mut more = false;
        let mut reached_ms = now_ms;
        let range = due::key_from(self.due_from_ms)..due::key_from(now_ms.saturating_add(1));
        for entry in store.snapshot().range(&store.due, range) {
            let (key, value) = entry.into_inner()?;
            let again = match Due::decode(&key, &value) {
                Ok((due_ms, _)) if piece.budget == 0 => {
                    more = true;
                    reached_ms = reached_ms.min(due_ms);
                    break;
                }
                Ok((due_ms, due)) => piece.handle(due_ms, due)?,
                Err(corrupt) => {
                    tracing::warn!(%corrupt, "removed an entry of the due index that cannot be read");
                    None
                }
            };
            let again = again.map(|(at_ms, due)| (at_ms, due.encode(at_ms)));
            // One batch must not both remove and write a key: its entries have no order among themselves.
            if again.as_ref().is_none_or(|(_, (again_key, _))| **again_key != *key) {
                piece.batch.remove(&store.due, key);
            }
            if let Some((at_ms, (key, value))) = again {
                piece.batch.insert(&store.due, key, value);
                more |= at_ms <= now_ms;
                reached_ms = reached_ms.min(at_ms);
            }
        }
        if !piece.batch.is_empty() {
            Store::commit_lazily(piece.batch)?;
        }
        self.due_from_ms = reached_ms;
        Ok(more)
    }
}

impl Piece<'_> {
    /// Does what an entry asks for; answers what is due again, and when.
    fn handle(&mut self, due_ms: u64, due: Due) -> Result<Option<(u64, Due)>, StoreError> {
        self.budget = self.budget.saturating_sub(1);
        match due {
            Due::Key(key) => self.remove_key(key).map(|()| None),
            Due::Channel(channel) => self.expire(due_ms, channel),
            Due::Leftovers(channel, from, through) => self.remove_leftovers(channel, from, through),
        }
    }

    /// Removes an idempotency key, unless it was used anew and counts longer.
    fn remove_key(&mut self, key: Vec<u8>) -> Result<(), StoreError> {
        let expired = match self.view.get(&self.store.keys, &key)? {
            Some(value) => UsedKey::decode(&value).is_ok_and(|used| used.expires_ms <= self.now_ms),
            None => false,
        };
        if expired {
            self.batch.remove(&self.store.keys, key);
        }
        Ok(())
    }

    /// Removes a channel's expired events, and the channel when nothing is left.
    fn expire(&mut self, due_ms: u64, channel: Channel) -> Result<Option<(u64, Due)>, StoreError> {
        let state = match self.store.channel_state(&self.view, &channel) {
            Ok(Some(state)) if state.due_ms == Some(due_ms) => state,
            // Gone, scheduled anew, or unreadable: then a purge has to mend it.
            Ok(_) | Err(StoreError::Damaged(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut state = ChannelState { due_ms: None, ..state };
        let Some(age_ms) = state.max_age_ms else {
            self.put(&channel, &state);
            return Ok(None);
        };
        let expired = expired_at(self.now_ms, age_ms);
        let unfinished = self.remove_expired(&channel, &mut state, expired)?;
        if state.held.is_none() && state.purged <= expired {
            self.batch.remove(&self.store.channels, channel.as_str());
            return Ok(None);
        }
        let again_ms = if unfinished {
            self.now_ms
        } else {
            state.expires_ms().unwrap_or(u64::MAX).max(self.now_ms.saturating_add(REVISIT_MS))
        };
        state.due_ms = Some(again_ms);
        self.put(&channel, &state);
        Ok(Some((again_ms, Due::Channel(channel))))
    }

    /// Counts and removes expired events within the budget; answers whether some are left.
    fn remove_expired(
        &mut self,
        channel: &Channel,
        state: &mut ChannelState,
        expired: StreamId,
    ) -> Result<bool, StoreError> {
        let Some(held) = state.held.filter(|held| held.first <= expired) else {
            return Ok(false);
        };
        let range = record::key(channel, held.first)..=record::key(channel, held.last);
        let mut removed = 0;
        let mut next = None;
        for entry in self.view.range(&self.store.events, range) {
            let key = entry.key()?;
            let id = record::id_of(&key).map_err(|corrupt| StoreError::corrupt(channel, corrupt))?;
            if id > expired || self.budget == 0 {
                next = Some(id);
                break;
            }
            self.batch.remove(&self.store.events, key);
            self.budget -= 1;
            removed += 1;
        }
        state.remove_oldest(removed, next);
        Ok(next.is_some_and(|next| next <= expired))
    }

    /// Removes events that a purge left behind; nobody can see them any more.
    fn remove_leftovers(
        &mut self,
        channel: Channel,
        from: StreamId,
        through: StreamId,
    ) -> Result<Option<(u64, Due)>, StoreError> {
        let (first, last) = (record::key(&channel, from), record::key(&channel, through));
        for entry in self.view.range(&self.store.events, first..=last) {
            let key = entry.key()?;
            if self.budget == 0 {
                let from = record::id_of(&key).map_err(|corrupt| StoreError::corrupt(&channel, corrupt))?;
                return Ok(Some((self.now_ms, Due::Leftovers(channel, from, through))));
            }
            self.batch.remove(&self.store.events, key);
            self.budget -= 1;
        }
        Ok(None)
    }

    fn put(&mut self, channel: &Channel, state: &ChannelState) {
        self.batch.insert(&self.store.channels, channel.as_str(), state.encode());
    }
}
