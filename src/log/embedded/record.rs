//! An event as it is stored: key `<channel> NUL <id, 16 bytes>`, value the draft.
//!
//! ```text
//! value   flags u8, [retry u32], type: length u8 and text, [skip: count u32, each length u32 and text], data
//! flags   1 data is JSON   2 a retry follows   4 a skip list follows
//! ```
//!
//! Invariants: keys sort by channel, then by id, since no channel name contains NUL; decoding what was encoded
//! gives the same event. The data stands last, so that reading it copies nothing.

use bytes::Bytes;

use super::codec::{Corrupt, Fields};
use crate::channel::Channel;
use crate::event::{Data, Draft, Event, EventType, Format, SkipList};
use crate::id::StreamId;

const FLAG_JSON: u8 = 1;
const FLAG_RETRY: u8 = 2;
const FLAG_SKIP: u8 = 4;
const ID_BYTES: usize = 16;

/// The key of the event `id` in `channel`.
pub(super) fn key(channel: &Channel, id: StreamId) -> Vec<u8> {
    let name = channel.as_str().as_bytes();
    let mut key = Vec::with_capacity(name.len() + 1 + ID_BYTES);
    key.extend_from_slice(name);
    key.push(0);
    key.extend_from_slice(&id.to_be_bytes());
    key
}

/// The id in a key.
pub(super) fn id_of(key: &[u8]) -> Result<StreamId, Corrupt> {
    let bytes = key.last_chunk::<ID_BYTES>().ok_or(Corrupt("an event key that ends in an id"))?;
    StreamId::from_be_bytes(*bytes).ok_or(Corrupt("an event key that ends in an id"))
}

/// The value that holds `draft`.
pub(super) fn encode(draft: &Draft) -> Vec<u8> {
    let kind = draft.kind.as_str().as_bytes();
    let mut value = Vec::with_capacity(16 + kind.len() + draft.data.bytes().len());
    let json = if draft.data.format() == Format::Json { FLAG_JSON } else { 0 };
    let retry = if draft.retry.is_some() { FLAG_RETRY } else { 0 };
    let skip = if draft.skip.is_empty() { 0 } else { FLAG_SKIP };
    value.push(json | retry | skip);
    if let Some(retry) = draft.retry {
        value.extend_from_slice(&retry.to_be_bytes());
    }
    value.push(u8::try_from(kind.len()).expect("an event type has at most 200 bytes"));
    value.extend_from_slice(kind);
    if !draft.skip.is_empty() {
        put_len(&mut value, draft.skip.len());
        for connection in &draft.skip {
            put_len(&mut value, connection.len());
            value.extend_from_slice(connection.as_bytes());
        }
    }
    value.extend_from_slice(draft.data.bytes());
    value
}

fn put_len(value: &mut Vec<u8>, len: usize) {
    let len = u32::try_from(len).expect("a request is bounded far below 4 GiB");
    value.extend_from_slice(&len.to_be_bytes());
}

/// The event that `value` holds; its data shares the memory of `value`.
pub(super) fn decode(id: StreamId, value: &Bytes) -> Result<Event, Corrupt> {
    let mut fields = Fields::new(value);
    let flags = fields.u8("an event's flags")?;
    if flags & !(FLAG_JSON | FLAG_RETRY | FLAG_SKIP) != 0 {
        return Err(Corrupt("known event flags"));
    }
    let retry = if flags & FLAG_RETRY == 0 { None } else { Some(fields.u32("a retry time")?) };
    let kind_len = fields.u8("an event type")?;
    let kind = fields.text(usize::from(kind_len), "an event type")?;
    let kind = EventType::parse(kind).map_err(|_| Corrupt("a valid event type"))?;
    let skip = if flags & FLAG_SKIP == 0 { SkipList::default() } else { decode_skip(&mut fields)? };
    let format = if flags & FLAG_JSON == 0 { Format::Text } else { Format::Json };
    let data = value.slice_ref(fields.rest());
    Ok(Event { id, draft: Draft { kind, data: Data::stored(format, data), retry, skip } })
}

fn decode_skip(fields: &mut Fields<'_>) -> Result<SkipList, Corrupt> {
    let count = fields.u32("a skip list")?;
    // Collected one by one: a wrong count fails at the end of the bytes, before it reserves memory.
    let mut skip = Vec::new();
    for _ in 0..count {
        let len = fields.u32("a skipped connection")?;
        skip.push(fields.text(len as usize, "a skipped connection")?.into());
    }
    Ok(skip.into_boxed_slice())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn draft() -> impl Strategy<Value = Draft> {
        let skip = prop::collection::vec("\\PC{0,40}", 0..4);
        ("[a-z]{1,200}", any::<bool>(), any::<String>(), any::<Option<u32>>(), skip).prop_map(
            |(kind, json, data, retry, skip)| Draft {
                kind: EventType::parse(&format!("x{}", &kind[1..])).unwrap(),
                data: Data::stored(if json { Format::Json } else { Format::Text }, Bytes::from(data)),
                retry,
                skip: skip.into_iter().map(String::into_boxed_str).collect(),
            },
        )
    }

    proptest! {
        #[test]
        fn an_event_comes_back_as_it_was_stored(draft in draft(), ms in 0..1_u64 << 48, seq: u64) {
            let id = StreamId::new(ms, seq).unwrap();
            let event = decode(id, &Bytes::from(encode(&draft))).unwrap();
            prop_assert_eq!(event, Event { id, draft });
        }

        #[test]
        fn keys_sort_by_channel_then_by_id(
            a in ("[a-c]{1,3}", 0..3_u64, any::<u64>()),
            b in ("[a-c]{1,3}", 0..3_u64, any::<u64>()),
        ) {
            let key_of = |(name, ms, seq): &(String, u64, u64)| {
                key(&Channel::parse(name).unwrap(), StreamId::new(*ms, *seq).unwrap())
            };
            prop_assert_eq!(a.cmp(&b), key_of(&a).cmp(&key_of(&b)));
            prop_assert_eq!(id_of(&key_of(&a)), Ok(StreamId::new(a.1, a.2).unwrap()));
        }

        #[test]
        fn any_bytes_are_an_event_or_an_error(bytes: Vec<u8>) {
            let _ = decode(StreamId::ZERO, &Bytes::from(bytes.clone()));
            let _ = id_of(&bytes);
        }
    }
}
