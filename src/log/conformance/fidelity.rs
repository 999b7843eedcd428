//! Fidelity: what is read is what was published, to the byte. Seen to fail with a `retry` that is not kept, on either log.

use bytes::Bytes;

use super::*;
use crate::channel::USER_BYTES_MAX;
use crate::event::Format;

fn draft(kind: &str, format: Format, data: &str, retry: Option<u32>, skip: &[&str]) -> Draft {
    Draft {
        kind: EventType::parse(kind).unwrap(),
        data: Data::stored(format, Bytes::copy_from_slice(data.as_bytes())),
        retry,
        skip: skip.iter().map(|connection| Box::from(*connection)).collect(),
    }
}

async fn round_trip(log: &dyn Log, name: &Channel, drafts: Vec<Draft>) {
    let items = drafts.iter().map(|draft| AppendItem { draft: draft.clone(), ..item(name, "") }).collect();
    let receipts = append(log, items).await;
    let page = read(log, name, everything()).await;
    for ((draft, receipt), event) in drafts.into_iter().zip(&receipts).zip(&page.events) {
        assert_eq!(event, &Event { id: receipt.id, draft });
    }
    assert_eq!(page.events.len(), receipts.len());
}

pub(crate) async fn events_come_back_as_they_were_published(harness: &impl Harness) {
    let drafts = vec![
        draft("message", Format::Text, "", None, &[]),
        draft("message", Format::Json, "{\"b\":1.0,\"a\":[1e400]}", Some(0), &["one"]),
        draft("x", Format::Text, "{\"looks\":\"like JSON\"}", Some(u32::MAX), &["node.1", "two", "three: 4"]),
        draft("Quake größer 日本", Format::Text, "a\nb\rc\r\nd\n\n\r", None, &[]),
        draft(&"t".repeat(200), Format::Text, "\0 nul \u{1} \u{7f}", Some(3_000), &[&"c".repeat(5_000)]),
        draft("message", Format::Text, "\u{feff} leading BOM, trailing blanks  ", None, &[]),
        draft("message", Format::Json, "null", None, &[]),
    ];
    round_trip(harness.log(), &channel("fidelity"), drafts).await;
}

pub(crate) async fn any_text_comes_back(harness: &impl Harness) {
    // Every Unicode scalar value once, in events of 16,384 code points.
    let drafts = (0..=0x10_u32)
        .flat_map(|plane| (0..4).map(move |quarter| plane * 0x1_0000 + quarter * 0x4000))
        .map(|start| (start..start + 0x4000).filter_map(char::from_u32).collect::<String>())
        .map(|all| draft("message", Format::Text, &all, None, &[]))
        .collect();
    round_trip(harness.log(), &channel("unicode"), drafts).await;
}

pub(crate) async fn a_large_event_comes_back(harness: &impl Harness) {
    let drafts = vec![
        draft("message", Format::Text, &noise(256 * 1024), None, &[]),
        draft("message", Format::Text, "small", None, &[]),
        draft("message", Format::Text, &"\n".repeat(256 * 1024), None, &[]),
    ];
    round_trip(harness.log(), &channel("large"), drafts).await;
}

pub(crate) async fn system_channels_are_ordinary_channels(harness: &impl Harness) {
    let log = harness.log();
    let longest_user = Channel::of_user(&" ".repeat(USER_BYTES_MAX)).unwrap();
    let names = ["$user:42", "$conn:n1-7", "a/b", "Grüße", "日本:語", "%2F", "*", &"x".repeat(200)];
    for name in names.into_iter().chain([longest_user.as_str()]) {
        let name = channel(name);
        append_text(log, &name, name.as_str()).await;
        assert_eq!(texts(log, &name).await, [name.as_str()]);
        assert_eq!(log.info(&name, &KEEP).await.unwrap().unwrap().length, 1);
    }
}
