//! Reading: pages, announced events, figures and names, each from one snapshot of the database.
//!
//! Invariants: a page and its bounds show the same moment; an event older than the maximum age that the
//! caller names is never returned; every scan of a channel starts at its first event or later, so it meets no
//! removed one. All functions block on the disk: the caller runs them on a blocking thread.

use std::ops::Bound;

use bytes::Bytes;
use fjall::{Iter, Readable, Snapshot};

use super::channel_state::{ChannelState, expired_at};
use super::codec::Corrupt;
use super::record;
use super::store::{Store, StoreError};
use crate::channel::Channel;
use crate::event::Event;
use crate::id::StreamId;
use crate::log::{Bounds, ChannelInfo, ChannelList, ListQuery, Page, ReadQuery, Want};

/// Names looked at for each name that a listing asks for, before it answers a short page.
const LIST_SCAN_FACTOR: usize = 16;

/// A page of one channel at `now_ms`.
pub(super) fn page(
    store: &Store,
    channel: &Channel,
    query: &ReadQuery,
    now_ms: u64,
) -> Result<Page, StoreError> {
    let view = store.snapshot();
    let partition = store
        .partition_state(&view)?
        .ok_or_else(|| StoreError::Damaged("the partition's state is missing".to_owned()))?;
    let state = store.channel_state(&view, channel)?.unwrap_or_default();
    let expired =
        query.max_age.map(|age| expired_at(now_ms, u64::try_from(age.as_millis()).unwrap_or(u64::MAX)));
    let bounds = Bounds {
        extent: state.extent(expired),
        epoch: partition.epoch,
        purged: state.purged,
        feed_last: partition.last,
        expired,
        passed_over_expired: passes_over_expired(store, &view, channel, &state, query.after, expired)?,
    };
    let after = query.after.max(expired.unwrap_or_default());
    let mut page = Page { events: Vec::new(), exhausted: true, bounds };
    let mut bytes = 0;
    let count_max = query.count_max.max(1);
    let entries = between(store, &view, channel, &state, after, query.before);
    for entry in in_order(entries, query.ascending) {
        let event = decode(channel, entry)?;
        bytes += event.draft.data.bytes().len();
        if page.events.len() == count_max || (bytes > query.bytes_max && !page.events.is_empty()) {
            page.exhausted = false;
            break;
        }
        page.events.push(event);
    }
    Ok(page)
}

/// Whether an event after `after` has expired and is still stored.
fn passes_over_expired(
    store: &Store,
    view: &Snapshot,
    channel: &Channel,
    state: &ChannelState,
    after: StreamId,
    expired: Option<StreamId>,
) -> Result<bool, StoreError> {
    let (Some(expired), Some(held)) = (expired, state.held) else {
        return Ok(false);
    };
    if after >= expired || held.first > expired {
        return Ok(false);
    }
    if after < held.first {
        return Ok(true);
    }
    let Some(mut entries) = between(store, view, channel, state, after, held.last) else {
        return Ok(false);
    };
    match entries.next() {
        Some(entry) => Ok(id_of(channel, &entry.key()?)? <= expired),
        // Nothing lies between: only the last event itself may follow.
        None => Ok(after < held.last && held.last <= expired),
    }
}

/// The stored events with `after < id < before`; `None` when there cannot be any.
fn between(
    store: &Store,
    view: &Snapshot,
    channel: &Channel,
    state: &ChannelState,
    after: StreamId,
    before: StreamId,
) -> Option<Iter> {
    let held = state.held?;
    let from = if after < held.first {
        Bound::Included(record::key(channel, held.first))
    } else {
        Bound::Excluded(record::key(channel, after))
    };
    // Beyond the last event there is nothing of this channel to step over.
    let to = if before > held.last {
        Bound::Included(record::key(channel, held.last))
    } else {
        Bound::Excluded(record::key(channel, before))
    };
    let starts_before_it_ends = after < held.last && before > held.first && before > after;
    starts_before_it_ends.then(|| view.range::<Vec<u8>, _>(&store.events, (from, to)))
}

fn in_order(entries: Option<Iter>, ascending: bool) -> impl Iterator<Item = fjall::Guard> {
    let (forward, backward) = if ascending { (entries, None) } else { (None, entries) };
    forward.into_iter().flatten().chain(backward.into_iter().flat_map(Iterator::rev))
}

fn decode(channel: &Channel, entry: fjall::Guard) -> Result<Event, StoreError> {
    let (key, value) = entry.into_inner()?;
    let id = id_of(channel, &key)?;
    record::decode(id, &Bytes::from(value)).map_err(|corrupt| damaged(channel, id, corrupt))
}

fn id_of(channel: &Channel, key: &[u8]) -> Result<StreamId, StoreError> {
    record::id_of(key).map_err(|corrupt| StoreError::corrupt(format_args!("channel {channel}"), corrupt))
}

fn damaged(channel: &Channel, id: StreamId, corrupt: Corrupt) -> StoreError {
    StoreError::corrupt(format_args!("event {id} of channel {channel}"), corrupt)
}

/// What is still there of the events that refs announced, in the order of the wants.
pub(super) fn announced(store: &Store, wants: &[Want]) -> Result<Vec<Vec<Event>>, StoreError> {
    let view = store.snapshot();
    wants.iter().map(|want| announced_one(store, &view, want)).collect()
}

fn announced_one(store: &Store, view: &Snapshot, want: &Want) -> Result<Vec<Event>, StoreError> {
    let Some(state) = store.channel_state(view, &want.channel)? else {
        return Ok(Vec::new());
    };
    let mut events = Vec::with_capacity(want.refs.min(1024));
    let entries = between(store, view, &want.channel, &state, want.after, StreamId::MAX);
    for entry in entries.into_iter().flatten() {
        let event = decode(&want.channel, entry)?;
        if event.id > want.through {
            break;
        }
        events.push(event);
    }
    Ok(events)
}

/// A channel's figures at `now_ms`, by the maximum age of its latest append.
pub(super) fn info(store: &Store, channel: &Channel, now_ms: u64) -> Result<Option<ChannelInfo>, StoreError> {
    let view = store.snapshot();
    let Some(state) = store.channel_state(&view, channel)?.filter(|state| state.is_alive(now_ms)) else {
        return Ok(None);
    };
    let Some(mut held) = state.held else {
        return Ok(None);
    };
    // What expired since the last sweep is counted out: about a second's worth.
    if let Some(expired) = state.expired(now_ms).filter(|expired| held.first <= *expired) {
        for entry in
            between(store, &view, channel, &state, StreamId::ZERO, StreamId::MAX).into_iter().flatten()
        {
            held.first = id_of(channel, &entry.key()?)?;
            if held.first > expired {
                break;
            }
            held.length -= 1;
        }
    }
    Ok(Some(ChannelInfo { length: held.length, first: held.first, last: held.last, key: None }))
}

/// Names of channels that hold events, in order.
pub(super) fn names(store: &Store, query: &ListQuery, now_ms: u64) -> Result<ChannelList, StoreError> {
    let view = store.snapshot();
    let limit = query.limit.max(1);
    let from = match &query.cursor {
        Some(cursor) if *cursor >= query.prefix => Bound::Excluded(cursor.as_bytes()),
        _ => Bound::Included(query.prefix.as_bytes()),
    };
    let mut list = ChannelList::default();
    let mut seen = None;
    for (looked_at, entry) in view.range::<&[u8], _>(&store.channels, (from, Bound::Unbounded)).enumerate() {
        let (key, value) = entry.into_inner()?;
        if !key.starts_with(query.prefix.as_bytes()) {
            break;
        }
        let looked_enough = looked_at >= limit.saturating_mul(LIST_SCAN_FACTOR) && seen.is_some();
        if list.channels.len() == limit || looked_enough {
            list.next = seen;
            break;
        }
        let channel = std::str::from_utf8(&key).ok().and_then(|name| Channel::parse_stored(name).ok());
        let channel = channel
            .ok_or_else(|| StoreError::Damaged(format!("{:?} is no channel name", Bytes::from(key))))?;
        if !query.visible.includes(&channel) {
            continue;
        }
        seen = Some(channel.as_str().to_owned());
        let state = ChannelState::decode(&value).map_err(|corrupt| {
            StoreError::corrupt(format_args!("the state of channel {channel}"), corrupt)
        })?;
        if state.is_alive(now_ms) {
            list.channels.push(channel);
        }
    }
    Ok(list)
}
