//! Looking and managing: history, channels, purging, adopting, health.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use futures_util::future::ready;
use futures_util::{StreamExt, TryStreamExt, stream};
use http::StatusCode;
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::access::may_subscribe;
use super::problem::{Code, Problem};
use super::query::Query;
use super::{App, ChannelPath, json_response};
use crate::auth::Caller;
use crate::channel::Channel;
use crate::event::Event;
use crate::id::{EventId, Partition, StreamId};
use crate::log::{ListQuery, LogError, ReadQuery, Visible};
use crate::sse;

const HISTORY_LIMIT_MAX: u32 = 1_000;
const HISTORY_LIMIT_DEFAULT: u32 = 100;
/// Bytes of one page of history.
const HISTORY_BYTES_MAX: usize = 4 * 1024 * 1024;
const LIST_LIMIT_MAX: u32 = 1_000;
const LIST_LIMIT_DEFAULT: u32 = 100;
/// Channels whose figures are read at the same time for a listing.
const INSPECTED_AT_ONCE: usize = 16;

/// `GET /channels/{channel}/events`.
pub(super) async fn history(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    ChannelPath(channel): ChannelPath,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    may_subscribe(&caller, &channel)?;
    let partition = channel.partition(app.hub.partitions());
    let query = Query::parse(query.as_deref())?;
    let ascending = match query.single("order")? {
        None | Some("asc") => true,
        Some("desc") => false,
        Some(other) => return Err(Problem::query("order", format!("expected asc or desc, not {other:?}"))),
    };
    let limit = query.number("limit", 1..=HISTORY_LIMIT_MAX)?.unwrap_or(HISTORY_LIMIT_DEFAULT);
    let read = ReadQuery {
        after: position(&app, &query, "after", partition)?.unwrap_or(StreamId::ZERO),
        before: position(&app, &query, "before", partition)?.unwrap_or(StreamId::MAX),
        ascending,
        count_max: limit as usize,
        bytes_max: HISTORY_BYTES_MAX,
        max_age: app.options.retention.of(&channel).max_age,
    };
    let page = app.log.read(&channel, &read).await?;
    let next = page.events.last().filter(|_| !page.exhausted).map(|event| event.id.at(partition).to_string());
    let events = page.events.iter().map(|event| Described::new(event, &channel, partition)).collect();
    Ok(json_response(StatusCode::OK, &History { events, next }))
}

/// The answer of [`history`]. Data goes out as the JSON that it is: as a [`Value`] it would lose digits and
/// repeated keys, and what a `Value` cannot hold, such as `1e400`, could not be shown.
#[derive(Serialize)]
struct History<'a> {
    events: Vec<Described<'a>>,
    next: Option<String>,
}

#[derive(Serialize)]
struct Described<'a> {
    id: String,
    stream_id: String,
    channel: &'a str,
    event: &'a str,
    data: Box<RawValue>,
    timestamp: String,
}

impl<'a> Described<'a> {
    fn new(event: &'a Event, channel: &'a Channel, partition: Partition) -> Self {
        Self {
            id: event.id.at(partition).to_string(),
            stream_id: event.id.to_string(),
            channel: sse::public_name(channel),
            event: event.draft.kind.as_str(),
            data: event.draft.data.to_json(),
            timestamp: sse::timestamp(event.id.ms()),
        }
    }
}

fn position(app: &App, query: &Query, name: &str, partition: Partition) -> Result<Option<StreamId>, Problem> {
    let Some(text) = query.single(name)?.filter(|text| !text.is_empty()) else { return Ok(None) };
    if app.hub.partitions() == 1
        && let Ok(id) = text.parse::<StreamId>()
    {
        return Ok(Some(id));
    }
    let id: EventId = text.parse().map_err(|error| Problem::query(name, error))?;
    if id.partition() != partition {
        return Err(Problem::query(name, format!("{id} is no id of this channel's partition")));
    }
    Ok(Some(id.stream_id()))
}

/// `GET /channels`: those that the caller may see.
pub(super) async fn list(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let query = Query::parse(query.as_deref())?;
    let limit = query.number("limit", 1..=LIST_LIMIT_MAX)?.unwrap_or(LIST_LIMIT_DEFAULT);
    let is_shown = move |channel: &Channel| !channel.is_system() && caller.may_subscribe(channel);
    let list = app
        .log
        .channels(&ListQuery {
            visible: Visible::only(is_shown),
            prefix: query.single("prefix")?.unwrap_or_default().to_owned(),
            cursor: query.single("cursor")?.filter(|cursor| !cursor.is_empty()).map(str::to_owned),
            limit: limit as usize,
        })
        .await?;
    let inspect_one = |channel: Channel| {
        let app = Arc::clone(&app);
        async move { inspect(&app, &channel).await }
    };
    let inspected = stream::iter(list.channels).map(inspect_one).buffered(INSPECTED_AT_ONCE);
    // A channel may expire while it is listed.
    let channels: Vec<Value> = inspected.try_filter_map(|found| ready(Ok(found))).try_collect().await?;
    Ok(json_response(StatusCode::OK, &json!({"channels": channels, "next": list.next})))
}

/// `GET /channels/{channel}`.
pub(super) async fn info(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    ChannelPath(channel): ChannelPath,
) -> Result<Response, Problem> {
    may_subscribe(&caller, &channel)?;
    match inspect(&app, &channel).await? {
        Some(info) => Ok(json_response(StatusCode::OK, &info)),
        None => Err(Problem::new(
            Code::ChannelNotFound,
            format!("channel {channel} holds no events and nobody listens to it"),
        )),
    }
}

/// What is known of a channel; `None` when it holds nothing and nobody listens.
async fn inspect(app: &App, channel: &Channel) -> Result<Option<Value>, LogError> {
    let partition = channel.partition(app.hub.partitions());
    let found = app.log.info(channel, &app.options.retention.of(channel)).await?;
    let subscribers = app.hub.listeners(channel);
    if found.is_none() && subscribers == 0 {
        return Ok(None);
    }
    let id = |id: Option<StreamId>| id.map(|id| id.at(partition).to_string());
    let last = found.as_ref().map(|info| info.last);
    let node = &*app.options.session.node;
    Ok(Some(json!({
        "channel": channel.as_str(),
        "length": found.as_ref().map_or(0, |info| info.length),
        "first_id": id(found.as_ref().map(|info| info.first)),
        "last_id": id(last),
        "last_activity": last.map(|last| sse::timestamp(last.ms())),
        "partition": partition.0,
        "redis_key": found.and_then(|info| info.key),
        "subscribers": {"total": subscribers, "nodes": {node: subscribers}},
    })))
}

/// `DELETE /channels/{channel}`.
pub(super) async fn purge(
    State(app): State<Arc<App>>,
    ChannelPath(channel): ChannelPath,
) -> Result<Response, Problem> {
    app.log.purge(&channel, &app.options.retention.of(&channel)).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `POST /channels/{channel}/adopt`.
pub(super) async fn adopt(
    State(app): State<Arc<App>>,
    ChannelPath(channel): ChannelPath,
) -> Result<Response, Problem> {
    let adopted = app.log.adopt(&channel, &app.options.retention.of(&channel)).await?;
    Ok(json_response(StatusCode::OK, &json!({"adopted": adopted})))
}

/// `GET /healthz`: the process runs and answers.
pub(super) async fn healthz() -> Response {
    json_response(StatusCode::OK, &json!({"status": "ok"}))
}

/// `GET /readyz`: whether a load balancer should send clients here. While the log itself is away every node is
/// in the same state, and taking all of them out would help nobody; `?strict=1` tells it all the same.
pub(super) async fn readyz(
    State(app): State<Arc<App>>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let strict = Query::parse(query.as_deref())?.switch("strict")?;
    let not_ready = |reason: &str| {
        json_response(StatusCode::SERVICE_UNAVAILABLE, &json!({"status": "not_ready", "reason": reason}))
    };
    if app.scope.leaving().is_cancelled() {
        return Ok(not_ready("draining"));
    }
    let answers = tokio::time::timeout(std::time::Duration::from_secs(1), app.log.ping()).await;
    let log_answers = matches!(answers, Ok(Ok(())));
    if log_answers && app.tailers_are_stuck() {
        return Ok(not_ready("the tailer is stuck"));
    }
    if log_answers {
        return Ok(json_response(StatusCode::OK, &json!({"status": "ready"})));
    }
    let name = app.options.log_name;
    let status = if strict { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    Ok(json_response(status, &json!({"status": "degraded", "degraded": [name]})))
}
