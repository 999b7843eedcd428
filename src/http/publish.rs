//! Publishing over HTTP: single events, arrays, and NDJSON streams of any length.
//!
//! Invariant: nothing of a single event or an array is published unless all of it is valid; an NDJSON stream
//! is published in order up to its first bad line, and the answer says how much that was.

mod body;
mod item;
mod ndjson;

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use serde_json::value::RawValue;
use serde_json::{Value, json};

pub use self::body::Bodies;
use self::body::single_bytes_max;
use self::item::{Limits, SingleBody, raw_item};
use super::access::may_publish;
use super::problem::{Code, Problem};
use super::query::Query;
use super::{App, ChannelPath, json_response};
use crate::auth::Caller;
use crate::channel::Channel;
use crate::clock;
use crate::limits::Source;
use crate::log::{AppendItem, Outcome};
use crate::publish::{PublishError, Published};

/// What a body is, by its `Content-Type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Media {
    Json,
    Ndjson,
    Raw,
}

/// `POST /channels/{channel}/events`.
pub(super) async fn publish_to_channel(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Extension(source): Extension<Source>,
    ChannelPath(channel): ChannelPath,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    may_publish(&caller, &channel)?;
    let limits = Limits::of(&app, &caller);
    let key = idempotency_header(&headers)?;
    let publish = &app.options.publish;
    // What is held is given back when the event is published.
    let (item, _held) = match media(&headers)? {
        Media::Json => {
            let (body, held) = app.bodies.read(body, single_bytes_max(publish), body::EVENT).await?;
            (SingleBody::parse(&body)?.into_item(channel, key, &limits)?, held)
        }
        Media::Raw => {
            let (body, held) = app.bodies.read(body, publish.event_bytes_max, body::EVENT).await?;
            let query = Query::parse(query.as_deref())?;
            (raw_item(channel, &body, query.single("event")?, key, &limits)?, held)
        }
        Media::Ndjson => {
            let detail = "application/x-ndjson goes to POST /events, where every line names its channel";
            return Err(Problem::new(Code::UnsupportedMediaType, detail));
        }
    };
    // The body may have outlasted the right to publish it.
    app.access.still_valid(&caller, clock::unix_ms())?;
    app.limits.publish(caller.account().as_deref(), source, 1)?;
    let channel = item.channel.clone();
    let published = app.publisher.publish(vec![item]).await?;
    let status = if published[0].duplicate { StatusCode::OK } else { StatusCode::CREATED };
    Ok(json_response(status, &receipt(&channel, published[0])))
}

/// `POST /events`.
pub(super) async fn publish_many(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Extension(source): Extension<Source>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    if headers.contains_key("idempotency-key") {
        let detail =
            "POST /events takes no Idempotency-Key header; give every item its own \"idempotency_key\"";
        return Err(Problem::new(Code::InvalidIdempotency, detail));
    }
    match media(&headers)? {
        Media::Ndjson => ndjson::publish_stream(&app, &caller, source, body).await,
        Media::Json => publish_array(&app, &caller, source, body).await,
        Media::Raw => {
            let detail = "POST /events takes application/json or application/x-ndjson; raw data goes to POST /channels/{channel}/events";
            Err(Problem::new(Code::UnsupportedMediaType, detail))
        }
    }
}

async fn publish_array(app: &App, caller: &Caller, source: Source, body: Body) -> Result<Response, Problem> {
    let (body, _held) = app.bodies.read(body, app.options.publish.batch_bytes_max, body::ARRAY).await?;
    let items = parse_array(app, caller, &body)?;
    drop(body);
    app.access.still_valid(caller, clock::unix_ms())?;
    app.limits.publish(caller.account().as_deref(), source, items.len())?;
    let channels: Vec<Channel> = items.iter().map(|item| item.channel.clone()).collect();
    let published = publish_items(app, items).await.map_err(Failed::into_problem)?;
    let results: Vec<Value> = channels.iter().zip(&published).map(|(c, p)| receipt(c, *p)).collect();
    let duplicates = published.iter().filter(|p| p.duplicate).count();
    let answer =
        json!({"published": published.len() - duplicates, "duplicates": duplicates, "results": results});
    Ok(json_response(StatusCode::OK, &answer))
}

/// Reads an array of items, or one item.
fn parse_array(app: &App, caller: &Caller, body: &[u8]) -> Result<Vec<AppendItem>, Problem> {
    let limits = Limits::of(app, caller);
    let text = utf8(body)?;
    if !text.trim_start().starts_with('[') {
        return Ok(vec![item::parse_item(text, &limits)?]);
    }
    let raws: Vec<&RawValue> = serde_json::from_str(text)
        .map_err(|error| Problem::new(Code::InvalidBody, format!("the body is no JSON array: {error}")))?;
    let max = app.options.publish.batch_events_max;
    if raws.len() > max {
        let detail =
            format!("an array has at most {max} events, this one has {}; NDJSON has no limit", raws.len());
        return Err(Problem::new(Code::BatchTooLarge, detail));
    }
    let parse = |(index, raw): (usize, &&RawValue)| {
        item::parse_item(raw.get(), &limits).map_err(|problem| problem.with("index", index))
    };
    raws.iter().enumerate().map(parse).collect()
}

/// A batch that failed, perhaps after other partitions had taken their part.
struct Failed {
    error: PublishError,
    published: usize,
}

impl Failed {
    fn into_problem(self) -> Problem {
        let outcome = self.error.outcome();
        let problem = Problem::from(self.error);
        match (self.published, outcome) {
            (0, _) => problem,
            // That part of it is known does not make the rest so.
            (published, Outcome::Unknown) => problem.with("published", published),
            (published, Outcome::NotPublished) => {
                problem.with("outcome", "partial").with("published", published)
            }
        }
    }
}

/// Publishes items, all or nothing within a partition; answers in their order.
async fn publish_items(app: &App, items: Vec<AppendItem>) -> Result<Vec<Published>, Failed> {
    let count = app.hub.partitions();
    let mut results: Vec<Option<Published>> = vec![None; items.len()];
    let mut parts: std::collections::BTreeMap<_, (Vec<usize>, Vec<AppendItem>)> =
        std::collections::BTreeMap::new();
    for (index, item) in items.into_iter().enumerate() {
        let (indexes, part) = parts.entry(item.channel.partition(count)).or_default();
        indexes.push(index);
        part.push(item);
    }
    for (indexes, part) in parts.into_values() {
        let published = app.publisher.publish(part).await.map_err(|error| {
            let published = results.iter().flatten().filter(|p| !p.duplicate).count();
            Failed { error, published }
        })?;
        for (index, published) in indexes.into_iter().zip(published) {
            results[index] = Some(published);
        }
    }
    Ok(results.into_iter().flatten().collect())
}

fn receipt(channel: &Channel, published: Published) -> Value {
    json!({
        "id": published.id.to_string(),
        "stream_id": published.id.stream_id().to_string(),
        "channel": channel.as_str(),
        "duplicate": published.duplicate,
    })
}

/// The header's key, validated together with the body's.
fn idempotency_header(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut values = headers.get_all("idempotency-key").iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        let detail = "the Idempotency-Key header stands there more than once; send one of them";
        return Err(Problem::new(Code::InvalidIdempotency, detail));
    }
    let text = value
        .to_str()
        .map_err(|_| Problem::new(Code::InvalidIdempotency, "the Idempotency-Key header is visible ASCII"))?;
    Ok(Some(text.to_owned()))
}

fn media(headers: &HeaderMap) -> Result<Media, Problem> {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let unsupported = |detail: String| Err(Problem::new(Code::UnsupportedMediaType, detail));
    match essence.as_str() {
        "application/json" => Ok(Media::Json),
        "application/x-ndjson" | "application/ndjson" | "application/jsonl" => Ok(Media::Ndjson),
        "application/octet-stream" => Ok(Media::Raw),
        text if text.starts_with("text/") => Ok(Media::Raw),
        "" => unsupported(
            "the request has no Content-Type: send application/json, text/plain or application/x-ndjson"
                .into(),
        ),
        "application/x-www-form-urlencoded" | "multipart/form-data" => unsupported(format!(
            "{essence} is a form's type (curl -d sends it unasked): add -H 'Content-Type: application/json'"
        )),
        other => unsupported(format!(
            "{other:?} is not taken: send application/json, text/plain or application/x-ndjson"
        )),
    }
}

/// The body of a call that takes one JSON document.
pub(super) async fn read_json(
    app: &App,
    headers: &HeaderMap,
    body: Body,
    bytes_max: usize,
) -> Result<Bytes, Problem> {
    if media(headers)? != Media::Json {
        return Err(Problem::new(Code::UnsupportedMediaType, "this call takes application/json"));
    }
    Ok(app.bodies.read(body, bytes_max, body::DOCUMENT).await?.0)
}

/// Reads a line as an item; answers its channel and the size of its data.
#[cfg(any(test, fuzzing))]
pub(super) fn read_any_item(line: &[u8], caller: &Caller, bytes_max: usize) -> Option<(String, usize)> {
    let retention = crate::log::retention::RetentionRules::new(
        Vec::new(),
        crate::log::Retention { max_length: None, max_age: None },
    );
    let limits = Limits::any(caller, &retention, bytes_max);
    let item = item::parse_item(utf8(line).ok()?, &limits).ok()?;
    Some((item.channel.as_str().to_owned(), item.draft.data.bytes().len()))
}

fn utf8(body: &[u8]) -> Result<&str, Problem> {
    std::str::from_utf8(body).map_err(|error| {
        Problem::new(Code::InvalidBody, format!("the body is no UTF-8 after byte {}", error.valid_up_to()))
    })
}
