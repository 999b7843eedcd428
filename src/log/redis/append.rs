//! Appending: requests to the arguments of `headwater_publish_v1`, and its answer to receipts.

use std::collections::HashMap;

use fred::types::Value;

use super::entry::{encode_skip, format_mark};
use super::value::{Reply, unexpected};
use crate::channel::Channel;
use crate::id::StreamId;
use crate::log::retention::Retention;
use crate::log::{AppendItem, AppendRequest, Appended, LogError, Receipt, Refusal};

/// The function's arguments after the feed.
pub(super) fn encode(requests: &[AppendRequest], floor: StreamId) -> Vec<Value> {
    let policies = Policies::of(requests);
    let items: usize = requests.iter().map(|request| request.items.len()).sum();
    let mut args = Vec::with_capacity(2 + 2 * policies.list.len() + requests.len() + 9 * items);
    args.push(Value::from(floor.to_string()));
    args.push(Value::from(policies.list.len() as i64));
    for retention in &policies.list {
        args.push(optional(retention.max_length));
        args.push(optional(retention.max_age_ms()));
    }
    for request in requests {
        args.push(Value::from(request.items.len() as i64));
        for item in &request.items {
            encode_item(&mut args, item, policies.number(&item.retention));
        }
    }
    args
}

fn encode_item(args: &mut Vec<Value>, item: &AppendItem, policy: i64) {
    let draft = &item.draft;
    args.push(Value::from(item.channel.as_str()));
    args.push(Value::from_static_str(format_mark(draft.data.format())));
    args.push(Value::from(draft.kind.as_str()));
    args.push(Value::Bytes(draft.data.bytes().clone()));
    args.push(optional(draft.retry.map(u64::from)));
    args.push(if draft.skip.is_empty() { empty() } else { Value::from(encode_skip(&draft.skip)) });
    args.push(Value::from(policy));
    match &item.idempotency {
        Some(idempotency) => {
            args.push(Value::from(idempotency.key.as_str()));
            let window = u64::try_from(idempotency.window.as_millis()).unwrap_or(u64::MAX).max(1);
            args.push(Value::from(window.to_string()));
        }
        None => args.extend([empty(), empty()]),
    }
}

fn empty() -> Value {
    Value::from_static_str("")
}

fn optional(number: Option<u64>) -> Value {
    number.map_or_else(empty, |number| Value::from(number.to_string()))
}

/// The distinct retentions of a call, named by number so that each is sent once.
struct Policies {
    list: Vec<Retention>,
    numbers: HashMap<(Option<u64>, Option<u64>), i64>,
}

impl Policies {
    fn of(requests: &[AppendRequest]) -> Self {
        let mut policies = Self { list: Vec::new(), numbers: HashMap::new() };
        for item in requests.iter().flat_map(|request| &request.items) {
            let retention = item.retention;
            policies.numbers.entry(Self::key(&retention)).or_insert_with(|| {
                policies.list.push(retention);
                policies.list.len() as i64
            });
        }
        policies
    }

    fn number(&self, retention: &Retention) -> i64 {
        self.numbers[&Self::key(retention)]
    }

    fn key(retention: &Retention) -> (Option<u64>, Option<u64>) {
        (retention.max_length, retention.max_age_ms())
    }
}

/// Reads the function's answer: one result per request.
pub(super) fn decode(reply: &Value, requests: &[AppendRequest]) -> Result<Vec<Appended>, LogError> {
    let results = reply.elements();
    if results.len() != requests.len() {
        return Err(unexpected("headwater_publish_v1", reply));
    }
    let decoded = results.iter().zip(requests).map(|(result, request)| decode_result(result, request));
    decoded.collect::<Option<_>>().ok_or_else(|| unexpected("headwater_publish_v1", reply))
}

fn decode_result(result: &Value, request: &AppendRequest) -> Option<Appended> {
    if let Some(text) = result.text() {
        return decode_refusal(&text).map(Err);
    }
    let ids = result.elements();
    if ids.len() != request.items.len() {
        return None;
    }
    ids.iter().map(decode_receipt).collect::<Option<Vec<_>>>().map(Ok)
}

fn decode_receipt(id: &Value) -> Option<Receipt> {
    let text = id.text()?;
    let (text, duplicate) = text.strip_prefix('=').map_or((&*text, false), |rest| (rest, true));
    Some(Receipt { id: text.parse().ok()?, duplicate })
}

fn decode_refusal(text: &str) -> Option<Refusal> {
    let mut parts = text.strip_prefix('!')?.splitn(3, '\n');
    let (code, channel, detail) = (parts.next()?, parts.next()?, parts.next()?);
    let channel = Channel::parse_stored(channel).ok()?;
    Some(match code {
        "poisoned" => Refusal::Poisoned(channel),
        _ => Refusal::WrongType(channel, detail.to_owned()),
    })
}
