//! A group: the requests that one commit makes durable together, prepared in memory first.
//!
//! Invariants: [`Group::load`] reads everything that a call touches before anything of it is applied, so a
//! failed read leaves the group as it was; a request is applied as a whole or refused as a whole; what the
//! group holds becomes visible by one batch ([`Group::finish`]) or not at all. Neighbours: `writer.rs` owns
//! the group, `sweep.rs` removes what expires.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use fjall::{OwnedWriteBatch, Readable, Snapshot};

use super::channel_state::ChannelState;
use super::codec::Corrupt;
use super::due::Due;
use super::idempotency::{self, UsedKey};
use super::partition_state::{self, PartitionState, has_room, next_id};
use super::record;
use super::store::{Store, StoreError};
use crate::channel::Channel;
use crate::id::{MS_MAX, StreamId};
use crate::log::{AppendItem, AppendRequest, Appended, LogError, Receipt, Ref, RefKind, Refusal, Retention};

/// A channel is trimmed once it holds this many events more than it has to, so that trimming comes in chunks.
const TRIM_SLACK: u64 = 200;

/// Requests being prepared.
pub(super) struct Group<'a> {
    store: &'a Store,
    view: Snapshot,
    now_ms: u64,
    state: PartitionState,
    channels: HashMap<Channel, Loaded<Touched>>,
    keys: HashMap<Vec<u8>, Loaded<Option<UsedKey>>>,
    due: Vec<(u64, Due)>,
    refs: Vec<Ref>,
}

/// What was read, or why it cannot be used.
type Loaded<T> = Result<T, Corrupt>;

/// A channel that the group reads or changes.
struct Touched {
    state: ChannelState,
    /// Events of this group, which the database does not hold yet, oldest first.
    pending: Vec<(StreamId, Vec<u8>)>,
    /// By the latest append of the group.
    retention: Option<Retention>,
    changed: bool,
}

/// A group ready to be written.
pub(super) struct Prepared {
    /// `None` when there is nothing to write.
    pub(super) batch: Option<OwnedWriteBatch>,
    pub(super) state: PartitionState,
    pub(super) refs: Vec<Ref>,
    /// The earliest due entry in the batch.
    pub(super) due_ms: Option<u64>,
}

impl<'a> Group<'a> {
    pub(super) fn new(store: &'a Store, state: PartitionState, now_ms: u64) -> Self {
        Self {
            store,
            view: store.snapshot(),
            now_ms,
            state,
            channels: HashMap::new(),
            keys: HashMap::new(),
            due: Vec::new(),
            refs: Vec::new(),
        }
    }

    /// Reads what `requests` touch. An error concerns this call alone.
    pub(super) fn load(&mut self, requests: &[AppendRequest]) -> Result<(), LogError> {
        check_room(self.state.last)?;
        for item in requests.iter().flat_map(|request| &request.items) {
            self.load_channel(&item.channel)?;
            if let Some(idempotency) = &item.idempotency {
                self.load_key(idempotency::key(&item.channel, &idempotency.key))?;
            }
        }
        Ok(())
    }

    fn load_channel(&mut self, channel: &Channel) -> Result<(), StoreError> {
        if let Entry::Vacant(slot) = self.channels.entry(channel.clone()) {
            let state = match self.store.channel_value(&self.view, channel)? {
                Some(value) => ChannelState::decode(&value),
                None => Ok(ChannelState::default()),
            };
            slot.insert(state.map(Touched::new));
        }
        Ok(())
    }

    fn load_key(&mut self, key: Vec<u8>) -> Result<(), StoreError> {
        if let Entry::Vacant(slot) = self.keys.entry(key) {
            let used = if slot.key().len() > idempotency::KEY_BYTES_MAX {
                Err(Corrupt("an idempotency key of at most 64,000 bytes"))
            } else {
                let value = self.view.get(&self.store.keys, slot.key())?;
                value.map(|value| UsedKey::decode(&value)).transpose()
            };
            slot.insert(used);
        }
        Ok(())
    }

    /// Applies one loaded request.
    pub(super) fn append(&mut self, request: &AppendRequest) -> Appended {
        for item in &request.items {
            self.check(item)?;
        }
        Ok(request.items.iter().map(|item| self.append_item(item)).collect())
    }

    fn check(&self, item: &AppendItem) -> Result<(), Refusal> {
        let refusal = |corrupt: &Corrupt| Refusal::WrongType(item.channel.clone(), corrupt.to_string());
        if let Some(Err(corrupt)) = self.channels.get(&item.channel) {
            return Err(refusal(corrupt));
        }
        if let Some(idempotency) = &item.idempotency
            && let Some(Err(corrupt)) = self.keys.get(&idempotency::key(&item.channel, &idempotency.key))
        {
            return Err(refusal(corrupt));
        }
        Ok(())
    }

    fn append_item(&mut self, item: &AppendItem) -> Receipt {
        let key = item.idempotency.as_ref().map(|it| (idempotency::key(&item.channel, &it.key), it.window));
        if let Some((key, _)) = &key
            && let Some(Ok(Some(used))) = self.keys.get(key)
            && used.expires_ms > self.now_ms
        {
            return Receipt { id: used.id, duplicate: true };
        }
        let id = self.next_id();
        if let Some((key, window)) = key {
            let window_ms = u64::try_from(window.as_millis()).unwrap_or(u64::MAX);
            let expires_ms = self.now_ms.saturating_add(window_ms);
            self.due.push((expires_ms, Due::Key(key.clone())));
            self.keys.insert(key, Ok(Some(UsedKey { id, expires_ms })));
        }
        let touched = self.touched(&item.channel);
        touched.state.add(id);
        touched.pending.push((id, record::encode(&item.draft)));
        touched.retention = Some(item.retention);
        touched.changed = true;
        let bytes = item.draft.data.bytes().len() as u64;
        self.refs.push(Ref { id, kind: RefKind::Event(item.channel.clone(), bytes) });
        Receipt { id, duplicate: false }
    }

    /// Forgets a channel's events. What the database holds of them is removed later, by the sweep. A state that
    /// cannot be read is replaced, so a purge mends a damaged channel.
    pub(super) fn purge(&mut self, channel: &Channel) -> Result<(), LogError> {
        check_room(self.state.last)?;
        self.load_channel(channel)?;
        let id = self.next_id();
        self.refs.push(Ref { id, kind: RefKind::Purged(channel.clone()) });
        let leftovers = match self.channels.get(channel) {
            Some(Ok(touched)) if touched.stored() > 0 => touched.state.held.map(|held| held.first),
            Some(Ok(_)) | None => None,
            Some(Err(_)) => Some(StreamId::ZERO),
        };
        if let Some(from) = leftovers {
            self.due.push((self.now_ms, Due::Leftovers(channel.clone(), from, id)));
        }
        let touched = self.touched(channel);
        touched.state.held = None;
        touched.state.purged = id;
        touched.pending.clear();
        touched.changed = true;
        Ok(())
    }

    /// Begins a new epoch above `watermark`, unless that is part of the history.
    pub(super) fn reset(&mut self, watermark: StreamId) -> Result<(), LogError> {
        if watermark > self.state.last {
            check_room(watermark)?;
            self.state.last = watermark;
            let id = self.next_id();
            self.state.epoch = id;
            self.refs.push(Ref { id, kind: RefKind::Epoch });
        }
        Ok(())
    }

    fn next_id(&mut self) -> StreamId {
        self.state.last = next_id(self.state.last, self.now_ms);
        self.state.last
    }

    /// The channel's entry; a state that could not be read is replaced by an empty one.
    fn touched(&mut self, channel: &Channel) -> &mut Touched {
        let slot = self.channels.entry(channel.clone()).or_insert(Err(Corrupt("a channel that was loaded")));
        if slot.is_err() {
            *slot = Ok(Touched::new(ChannelState::default()));
        }
        slot.as_mut().expect("made good just above")
    }

    /// Trims what has grown too long and writes everything into one batch.
    pub(super) fn finish(mut self) -> Result<Prepared, StoreError> {
        let mut batch = self.store.batch();
        let mut channels = std::mem::take(&mut self.channels);
        for (channel, touched) in &mut channels {
            if let Ok(touched) = touched
                && touched.changed
            {
                self.trim(channel, touched, &mut batch)?;
                self.schedule(channel, touched);
                batch.insert(&self.store.channels, channel.as_str(), touched.state.encode());
                for (id, value) in touched.pending.drain(..) {
                    batch.insert(&self.store.events, record::key(channel, id), value);
                }
            }
        }
        let mut due_ms: Option<u64> = None;
        for (at_ms, due) in self.due {
            if let Due::Key(key) = &due
                && let Some(Ok(Some(used))) = self.keys.get(key)
            {
                batch.insert(&self.store.keys, key.as_slice(), used.encode());
            }
            let (key, value) = due.encode(at_ms);
            batch.insert(&self.store.due, key, value);
            due_ms = Some(due_ms.map_or(at_ms, |earliest| earliest.min(at_ms)));
        }
        if self.refs.is_empty() {
            return Ok(Prepared { batch: None, state: self.state, refs: self.refs, due_ms: None });
        }
        batch.insert(&self.store.partition, partition_state::KEY, self.state.encode());
        Ok(Prepared { batch: Some(batch), state: self.state, refs: self.refs, due_ms })
    }

    /// Removes the oldest events of a channel that holds too many.
    fn trim(
        &self,
        channel: &Channel,
        touched: &mut Touched,
        batch: &mut OwnedWriteBatch,
    ) -> Result<(), StoreError> {
        // At least one stays: a channel that holds nothing could prove nothing.
        let keep = touched.retention.and_then(|retention| retention.max_length).map(|max| max.max(1));
        let (Some(keep), Some(held)) = (keep, touched.state.held) else {
            return Ok(());
        };
        if held.length <= keep.saturating_add(TRIM_SLACK) {
            return Ok(());
        }
        let excess = held.length - keep;
        let stored = touched.stored().min(excess);
        let mut next = None;
        let range = record::key(channel, held.first)..=record::key(channel, held.last);
        let wanted = usize::try_from(stored).unwrap_or(usize::MAX);
        if stored > 0 {
            for (nth, entry) in self.view.range(&self.store.events, range).enumerate() {
                let key = entry.key()?;
                if nth == wanted {
                    next =
                        Some(record::id_of(&key).map_err(|corrupt| StoreError::corrupt(channel, corrupt))?);
                    break;
                }
                batch.remove(&self.store.events, key);
            }
        }
        touched
            .pending
            .drain(..usize::try_from(excess - stored).unwrap_or(usize::MAX).min(touched.pending.len()));
        let next = next.or_else(|| touched.pending.first().map(|(id, _)| *id));
        touched.state.remove_oldest(excess, next);
        Ok(())
    }

    /// Notes when the sweep has to look at the channel, if it would come too late otherwise.
    fn schedule(&mut self, channel: &Channel, touched: &mut Touched) {
        if let Some(retention) = touched.retention {
            touched.state.max_age_ms = retention.max_age_ms().filter(|age_ms| *age_ms < MS_MAX);
        }
        if let Some(at_ms) = touched.state.expires_ms()
            && touched.state.due_ms.is_none_or(|due_ms| due_ms > at_ms)
        {
            touched.state.due_ms = Some(at_ms);
            self.due.push((at_ms, Due::Channel(channel.clone())));
        }
    }
}

fn check_room(last: StreamId) -> Result<(), LogError> {
    if has_room(last) {
        return Ok(());
    }
    Err(LogError::Refused(format!("no ids are left after {last}: a clock was far off")))
}

impl Touched {
    fn new(state: ChannelState) -> Self {
        Self { state, pending: Vec::new(), retention: None, changed: false }
    }

    /// How many of the channel's events the database holds.
    fn stored(&self) -> u64 {
        self.state.held.map_or(0, |held| held.length - self.pending.len() as u64)
    }
}
