//! `POST` and `GET /revocations`: ending tokens before their time, on every node.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::problem::{Code, Problem};
use super::publish::read_json;
use super::{App, json_response};
use crate::auth::revocation::{REVOCATIONS_MAX, Revocation, Target, Until, check_target};
use crate::clock;
use crate::sse::timestamp;

const BODY_BYTES_MAX: usize = 4 * 1024;

/// What is to be revoked, and for how long.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    jti: Option<String>,
    sub: Option<String>,
    until: Option<Time>,
}

/// A moment, as people or as tokens write it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Time {
    Seconds(u64),
    Text(String),
}

/// `POST /revocations`.
pub(super) async fn revoke(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let body = read_json(&app, &headers, body, BODY_BYTES_MAX).await?;
    let order: Order =
        serde_json::from_slice(&body).map_err(|error| Problem::new(Code::InvalidBody, error.to_string()))?;
    let now_ms = clock::unix_ms();
    let (target, until) = order.read(app.options.token_lifetime_ms, now_ms)?;
    let is_in_force = until.ms() > now_ms;
    if is_in_force && app.access.revocations.count(now_ms) >= REVOCATIONS_MAX {
        let detail =
            format!("{REVOCATIONS_MAX} revocations are in force; the next one has to wait until one ends");
        return Err(Problem::new(Code::Overloaded, detail).retry_after(std::time::Duration::from_secs(60)));
    }
    let revocation = app.controller.revoke(target, until).await?;
    // For the record: who was locked out, and until when, is what an operator will ask.
    tracing::info!(target_of_revocation = %revocation.target, until = timestamp(revocation.until_ms), "tokens were revoked");
    let status = if is_in_force { StatusCode::CREATED } else { StatusCode::OK };
    Ok(json_response(status, &describe(&revocation)))
}

/// `GET /revocations`: those in force.
pub(super) async fn list(State(app): State<Arc<App>>) -> Response {
    let revocations: Vec<Value> =
        app.access.revocations.list(clock::unix_ms()).iter().map(describe).collect();
    json_response(StatusCode::OK, &json!({"revocations": revocations}))
}

fn describe(revocation: &Revocation) -> Value {
    let until = timestamp(revocation.until_ms);
    match &revocation.target {
        Target::Token(jti) => json!({"jti": jti, "until": until}),
        Target::Subject(sub) => json!({"sub": sub, "until": until}),
    }
}

impl Order {
    fn read(self, lifetime_ms: u64, now_ms: u64) -> Result<(Target, Until), Problem> {
        let invalid = |detail: &str| Problem::new(Code::InvalidBody, detail);
        let target = match (self.jti, self.sub) {
            (Some(jti), None) => Target::Token(jti.into()),
            (None, Some(sub)) => Target::Subject(sub.into()),
            _ => return Err(invalid("expected either \"jti\", one token's id, or \"sub\", a user's")),
        };
        let (Target::Token(text) | Target::Subject(text)) = &target;
        check_target(text).map_err(|reason| invalid(&format!("jti or sub: {reason}")))?;
        let until = match self.until {
            // Nobody who asks for the usual means to shorten what somebody asked for before.
            None => Until::AtLeast(now_ms.saturating_add(lifetime_ms)),
            Some(Time::Seconds(seconds)) => Until::Exactly(seconds.saturating_mul(1_000)),
            Some(Time::Text(text)) => {
                let time: jiff::Timestamp = text.parse().map_err(|error| {
                    invalid(&format!("until: expected a time as in \"2030-01-31T12:00:00Z\", or seconds since 1970: {error}"))
                })?;
                Until::Exactly(u64::try_from(time.as_millisecond()).unwrap_or(0))
            }
        };
        Ok((target, until))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: u64 = 1_700_000_000_000;

    fn read(json: &str) -> Result<(Target, Until), Problem> {
        let order: Order =
            serde_json::from_str(json).map_err(|e| Problem::new(Code::InvalidBody, e.to_string()))?;
        order.read(5_000, NOW_MS)
    }

    #[test]
    fn an_end_is_a_time_in_words_or_seconds_or_follows_from_the_longest_lifetime() {
        let target = Target::Subject("u".into());
        for (json, until) in [
            (r#"{"sub":"u"}"#, Until::AtLeast(NOW_MS + 5_000)),
            (r#"{"sub":"u","until":1800000000}"#, Until::Exactly(1_800_000_000_000)),
            (r#"{"sub":"u","until":"2027-01-15T08:00:00Z"}"#, Until::Exactly(1_800_000_000_000)),
            (r#"{"sub":"u","until":"2027-01-15T09:00:00+01:00"}"#, Until::Exactly(1_800_000_000_000)),
            (r#"{"sub":"u","until":"1900-01-01T00:00:00Z"}"#, Until::Exactly(0)),
        ] {
            assert_eq!(read(json).unwrap(), (target.clone(), until), "{json}");
        }
        for json in [
            "{}",
            r#"{"sub":"u","jti":"t"}"#,
            r#"{"sub":""}"#,
            r#"{"jti":"a\nb"}"#,
            r#"{"sub":"u","until":"tomorrow"}"#,
            r#"{"sub":"u","til":1}"#,
            r#"{"sub":7}"#,
        ] {
            assert_eq!(read(json).unwrap_err().code(), Code::InvalidBody, "{json}");
        }
    }
}
