//! Stored entries: how events and refs stand in Redis.
//!
//! An event is `v <format> type <type> data <data> [retry <ms>] [skip <id>,<id>..]` with `v` first: that mark
//! tells what a function wrote from what anybody added with a plain `XADD`. A ref is `ch <channel> n <bytes>`,
//! a marker `mark epoch` or `mark purge ch <channel>`. Invariant: what cannot be understood is foreign, never
//! an error: one odd entry must not stop a channel.

use bytes::Bytes;
use fred::types::Value;

use super::value::Reply;
use crate::channel::Channel;
use crate::event::{Data, Draft, Event, EventType, Format, SkipList};
use crate::id::StreamId;
use crate::log::{Ref, RefKind};

const TEXT_MARK: &str = "1";
const JSON_MARK: &str = "1j";

/// The mark that a new event carries.
pub(super) fn format_mark(format: Format) -> &'static str {
    match format {
        Format::Text => TEXT_MARK,
        Format::Json => JSON_MARK,
    }
}

/// The stored form of a skip list; connection ids contain no comma.
pub(super) fn encode_skip(skip: &SkipList) -> String {
    skip.join(",")
}

/// Reads `[id, [field, value, ..]]`; `None` for an entry that no function wrote.
pub(super) fn decode_event(entry: &Value) -> Option<Event> {
    let [id, fields] = entry.elements() else { return None };
    let fields = fields.elements();
    if fields.first()?.text()? != "v" {
        return None;
    }
    let format = match &*fields.get(1)?.text()? {
        TEXT_MARK => Format::Text,
        JSON_MARK => Format::Json,
        _ => return None,
    };
    let mut kind = EventType::default();
    let mut data = Bytes::new();
    let (mut retry, mut skip) = (None, SkipList::default());
    for pair in fields[2..].chunks_exact(2) {
        match &*pair[0].text()? {
            "type" => kind = EventType::parse(&pair[1].text()?).ok()?,
            "data" => data = pair[1].raw()?,
            "retry" => retry = u32::try_from(pair[1].number()?).ok(),
            "skip" => skip = pair[1].text()?.split(',').map(Box::from).collect(),
            // A later version's field.
            _ => {}
        }
    }
    Some(Event { id: id.stream_id()?, draft: Draft { kind, data: Data::stored(format, data), retry, skip } })
}

/// Reads an entry of the feed. `None` only when it has no id, which Redis does not do.
pub(super) fn decode_ref(entry: &Value) -> Option<Ref> {
    let [id, fields] = entry.elements() else { return None };
    let id = id.stream_id()?;
    let channel = || Channel::parse_stored(&fields.field("ch")?.text()?).ok();
    let kind = match fields.field("mark").map(|mark| mark.text().unwrap_or_default()).as_deref() {
        None => channel().and_then(|ch| Some(RefKind::Event(ch, fields.field("n")?.number()?))),
        Some("epoch") => Some(RefKind::Epoch),
        Some("purge") => channel().map(RefKind::Purged),
        Some(_) => None,
    };
    Some(Ref { id, kind: kind.unwrap_or(RefKind::Foreign) })
}

/// The id of an entry.
pub(super) fn entry_id(entry: &Value) -> Option<StreamId> {
    entry.elements().first()?.stream_id()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(id: &str, fields: &[&str]) -> Value {
        let fields = fields.iter().map(|f| Value::from(*f)).collect();
        Value::Array(vec![Value::from(id), Value::Array(fields)])
    }

    #[test]
    fn an_event_reads_back_with_every_field() {
        let event = decode_event(&entry(
            "5-1",
            &["v", "1j", "type", "quake", "data", "{}", "retry", "250", "skip", "n.1,n.2", "later", "x"],
        ));
        let event = event.unwrap();
        assert_eq!(event.id, StreamId::new(5, 1).unwrap());
        assert_eq!(event.draft.kind.as_str(), "quake");
        assert_eq!((event.draft.data.format(), event.draft.data.as_str()), (Format::Json, "{}"));
        assert_eq!(event.draft.retry, Some(250));
        assert_eq!(*event.draft.skip, ["n.1", "n.2"].map(Box::<str>::from));
    }

    #[test]
    fn what_no_function_wrote_is_foreign() {
        let foreign: [&[&str]; 6] = [
            &["type", "a", "data", "b"],
            &["data", "b", "v", "1"],
            &["v", "2", "data", "b"],
            &["v", "1", "type", "a\nb"],
            &["v"],
            &[],
        ];
        for fields in foreign {
            assert_eq!(decode_event(&entry("5-1", fields)), None, "{fields:?}");
        }
        for fields in [&["ch", "a b", "n", "1"][..], &["x", "y"], &["mark", "later"], &["mark", "purge"]] {
            assert_eq!(decode_ref(&entry("5-1", fields)).unwrap().kind, RefKind::Foreign, "{fields:?}");
        }
    }

    proptest! {
        #[test]
        fn no_entry_makes_the_decoder_panic(fields in prop::collection::vec("(v|1|1j|type|data|ch|n|mark|\\PC{0,3})", 0..8)) {
            let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
            let _ = decode_event(&entry("5-1", &fields));
            let _ = decode_ref(&entry("5-1", &fields));
        }
    }
}
