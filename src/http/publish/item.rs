//! Items: what a publisher sends for one event, validated into what the log takes, and may be sent by them.

use std::borrow::Cow;
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::super::App;
use super::super::access::may_publish;
use super::super::problem::{Code, Problem};
use super::utf8;
use crate::auth::Caller;
use crate::channel::Channel;
use crate::event::{Data, Draft, EventType};
use crate::log::retention::RetentionRules;
use crate::log::{AppendItem, Idempotency};

const KEY_BYTES_MAX: usize = 256;
const WINDOW_MAX: Duration = Duration::from_secs(24 * 60 * 60);
const EXCLUDE_MAX: usize = 100;
const EXCLUDE_BYTES_MAX: usize = 128;

/// What items are validated against.
pub(super) struct Limits<'a> {
    caller: &'a Caller,
    event_bytes_max: usize,
    window_default: Duration,
    retention: &'a RetentionRules,
}

impl<'a> Limits<'a> {
    #[cfg(any(test, fuzzing))]
    pub(super) fn any(caller: &'a Caller, retention: &'a RetentionRules, event_bytes_max: usize) -> Self {
        Self { caller, event_bytes_max, window_default: WINDOW_MAX, retention }
    }

    pub(super) fn of(app: &'a App, caller: &'a Caller) -> Self {
        Self {
            caller,
            event_bytes_max: app.options.publish.event_bytes_max,
            window_default: app.options.publish.idempotency_window,
            retention: &app.options.retention,
        }
    }
}

/// The JSON body of a single publish.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SingleBody<'a> {
    #[serde(borrow, default)]
    event: Option<Cow<'a, str>>,
    #[serde(borrow, default, deserialize_with = "present")]
    data: Option<&'a RawValue>,
    #[serde(default)]
    retry: Option<u32>,
    #[serde(borrow, default)]
    exclude: Option<Vec<Cow<'a, str>>>,
    #[serde(borrow, default)]
    idempotency_key: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    idempotency_window: Option<Cow<'a, str>>,
}

/// An item of an array or of an NDJSON stream.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BatchItem<'a> {
    #[serde(borrow)]
    channel: Cow<'a, str>,
    #[serde(borrow, default)]
    event: Option<Cow<'a, str>>,
    #[serde(borrow, default, deserialize_with = "present")]
    data: Option<&'a RawValue>,
    #[serde(default)]
    retry: Option<u32>,
    #[serde(borrow, default)]
    exclude: Option<Vec<Cow<'a, str>>>,
    #[serde(borrow, default)]
    idempotency_key: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    idempotency_window: Option<Cow<'a, str>>,
}

/// `null` is data, too: only an absent field is none.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

impl<'a> SingleBody<'a> {
    pub(super) fn parse(body: &'a [u8]) -> Result<Self, Problem> {
        parse_object(utf8(body)?)
    }

    /// `header_key` is the `Idempotency-Key` header's.
    pub(super) fn into_item(
        self,
        channel: Channel,
        header_key: Option<String>,
        limits: &Limits<'_>,
    ) -> Result<AppendItem, Problem> {
        let key = match (header_key, self.idempotency_key) {
            (Some(header), Some(field)) if header != field => {
                let detail =
                    "the Idempotency-Key header and the field idempotency_key differ; send one of them";
                return Err(Problem::new(Code::InvalidIdempotency, detail));
            }
            (Some(header), _) => Some(header),
            (None, field) => field.map(Cow::into_owned),
        };
        let raw = self.data.ok_or_else(|| missing("data"))?;
        let data = Data::from_json(raw)
            .map_err(|error| Problem::new(Code::InvalidBody, format!("data is no Unicode text: {error}")))?;
        let draft = Draft {
            kind: event_type(self.event.as_deref())?,
            data: limited(data, limits)?,
            retry: self.retry,
            skip: skip_list(self.exclude.as_deref().unwrap_or_default())?,
        };
        let idempotency = idempotency(key, self.idempotency_window.as_deref(), limits)?;
        let retention = limits.retention.of(&channel);
        Ok(AppendItem { channel, draft, retention, idempotency })
    }
}

/// Reads an item that names its channel.
pub(super) fn parse_item(json: &str, limits: &Limits<'_>) -> Result<AppendItem, Problem> {
    let item: BatchItem<'_> = parse_object(json)?;
    let channel = Channel::parse(&item.channel)?;
    may_publish(limits.caller, &channel)?;
    let single = SingleBody {
        event: item.event,
        data: item.data,
        retry: item.retry,
        exclude: item.exclude,
        idempotency_key: item.idempotency_key,
        idempotency_window: item.idempotency_window,
    };
    single.into_item(channel, None, limits)
}

/// An event whose data is the body itself.
pub(super) fn raw_item(
    channel: Channel,
    body: &[u8],
    event: Option<&str>,
    key: Option<String>,
    limits: &Limits<'_>,
) -> Result<AppendItem, Problem> {
    let draft = Draft {
        kind: event_type(event)?,
        data: limited(Data::text(utf8(body)?), limits)?,
        retry: None,
        skip: Box::default(),
    };
    let idempotency = idempotency(key, None, limits)?;
    let retention = limits.retention.of(&channel);
    Ok(AppendItem { channel, draft, retention, idempotency })
}

fn parse_object<'a, T: Deserialize<'a>>(json: &'a str) -> Result<T, Problem> {
    if !json.trim_start().starts_with('{') {
        let detail = "expected a JSON object with the field \"data\", as in {\"event\":\"message\",\"data\":{\"n\":1}}";
        return Err(Problem::new(Code::InvalidBody, detail));
    }
    serde_json::from_str(json).map_err(|error| Problem::new(Code::InvalidBody, error.to_string()))
}

fn missing(field: &str) -> Problem {
    Problem::new(Code::InvalidBody, format!("the field {field:?} is missing"))
}

fn event_type(event: Option<&str>) -> Result<EventType, Problem> {
    Ok(event.map_or_else(|| Ok(EventType::default()), EventType::parse)?)
}

fn limited(data: Data, limits: &Limits<'_>) -> Result<Data, Problem> {
    let bytes = data.bytes().len();
    if bytes > limits.event_bytes_max {
        let detail = format!(
            "the data has {bytes} bytes, at most {} are taken (publish.event_bytes_max)",
            limits.event_bytes_max
        );
        return Err(Problem::new(Code::DataTooLarge, detail));
    }
    Ok(data)
}

fn skip_list(exclude: &[Cow<'_, str>]) -> Result<Box<[Box<str>]>, Problem> {
    let is_connection = |id: &str| {
        !id.is_empty()
            && id.len() <= EXCLUDE_BYTES_MAX
            && id.bytes().all(|b| b.is_ascii_graphic() && b != b',')
    };
    if exclude.len() > EXCLUDE_MAX || !exclude.iter().all(|id| is_connection(id)) {
        let detail = format!("exclude lists at most {EXCLUDE_MAX} connection ids, as connected tells them");
        return Err(Problem::new(Code::InvalidBody, detail));
    }
    Ok(exclude.iter().map(|id| Box::from(&**id)).collect())
}

fn idempotency(
    key: Option<String>,
    window: Option<&str>,
    limits: &Limits<'_>,
) -> Result<Option<Idempotency>, Problem> {
    let invalid = |detail: String| Problem::new(Code::InvalidIdempotency, detail);
    let Some(key) = key else {
        return match window {
            None => Ok(None),
            Some(_) => Err(invalid("idempotency_window needs an idempotency_key beside it".to_owned())),
        };
    };
    if key.is_empty() || key.len() > KEY_BYTES_MAX || key.chars().any(char::is_control) {
        return Err(invalid(format!(
            "an idempotency key has 1 to {KEY_BYTES_MAX} bytes and no control characters"
        )));
    }
    let window = match window {
        None => limits.window_default,
        Some(text) => humantime::parse_duration(text)
            .ok()
            .filter(|window| !window.is_zero() && *window <= WINDOW_MAX)
            .ok_or_else(|| {
                invalid(format!(
                    "idempotency_window is {text:?}; expected a duration up to 24h, as in \"1h\""
                ))
            })?,
    };
    Ok(Some(Idempotency { key, window }))
}
