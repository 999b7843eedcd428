//! Reading history: a query to the arguments of `headwater_read_v1`, and its answer to a page.

use fred::types::Value;

use super::entry::decode_event;
use super::value::{Reply, unexpected};
use crate::channel::Channel;
use crate::id::StreamId;
use crate::log::bounds::{Bounds, Extent};
use crate::log::{LogError, Page, ReadQuery};

/// The function's arguments after the feed.
pub(super) fn encode(channel: &Channel, query: &ReadQuery) -> Vec<Value> {
    let max_age_ms = query.max_age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
    vec![
        Value::from(channel.as_str()),
        Value::from(query.after.to_string()),
        Value::from(query.before.to_string()),
        Value::from_static_str(if query.ascending { "asc" } else { "desc" }),
        Value::from(query.count_max.max(1).to_string()),
        Value::from(query.bytes_max.to_string()),
        max_age_ms.map_or_else(|| Value::from_static_str(""), |age| Value::from(age.to_string())),
    ]
}

/// A page, and how many entries on it no function wrote.
pub(super) struct Decoded {
    pub(super) page: Page,
    pub(super) foreign: usize,
    /// The last entry that was read, foreign or not: where the next page starts.
    pub(super) last_entry: Option<StreamId>,
}

/// Reads the function's answer.
pub(super) fn decode(reply: &Value) -> Result<Decoded, LogError> {
    decode_page(reply.elements()).ok_or_else(|| unexpected("headwater_read_v1", reply))
}

fn decode_page(parts: &[Value]) -> Option<Decoded> {
    let [feed_last, epoch, purged, expiry, passed_over, exhausted, extent, entries] = parts else {
        return None;
    };
    let entries = entries.elements();
    let events: Vec<_> = entries.iter().filter_map(decode_event).collect();
    let bounds = Bounds {
        extent: decode_extent(extent.elements()),
        epoch: epoch.stream_id()?,
        purged: purged.stream_id()?,
        feed_last: feed_last.stream_id()?,
        expired: expiry.number().map(StreamId::start_of),
        passed_over_expired: passed_over.number()? == 1,
    };
    Some(Decoded {
        foreign: entries.len() - events.len(),
        last_entry: entries.last().and_then(super::entry::entry_id),
        page: Page { events, exhausted: exhausted.number()? == 1, bounds },
    })
}

fn decode_extent(parts: &[Value]) -> Option<Extent> {
    let [first, last, length, entries_added, max_deleted] = parts else { return None };
    Some(Extent {
        // A stream whose entries were all deleted has no first one.
        first: first.stream_id().unwrap_or(StreamId::MAX),
        // An id beyond 48 bits cannot be an event's; such a channel is refused as poisoned when published to.
        last: last.stream_id().unwrap_or(StreamId::MAX),
        length: length.number()?,
        entries_added: entries_added.number()?,
        max_deleted: max_deleted.stream_id().unwrap_or(StreamId::MAX),
    })
}
