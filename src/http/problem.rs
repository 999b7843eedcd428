//! Errors as `application/problem+json` (RFC 9457), each with a stable `code`.
//!
//! Invariant: every error that a request's handling ends in is a [`Problem`] (what is no HTTP is hyper's to refuse,
//! with an empty body), and every code stands in the
//! table of `docs/errors.md`. This is the one place that maps errors to statuses.

use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde_json::{Map, Value, json};

use super::metrics;
use crate::channel::InvalidChannel;
use crate::event::InvalidType;
use crate::fanout::filter::InvalidFilter;
use crate::limits::Refused;
use crate::log::{LogError, Outcome, Refusal};
use crate::publish::PublishError;

/// The kinds of errors: code, status, and what is wrong in general.
macro_rules! codes {
    ($($name:ident $code:literal $status:ident $title:literal),* $(,)?) => {
        /// A stable name for a kind of error.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Code {
            $(#[doc = $title] $name,)*
        }

        impl Code {
            /// Every code.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// What stands in `code`.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $code,)* }
            }

            /// The status that goes with it.
            pub fn status(self) -> StatusCode {
                match self { $(Self::$name => StatusCode::$status,)* }
            }

            /// What stands in `title`.
            pub fn title(self) -> &'static str {
                match self { $(Self::$name => $title,)* }
            }
        }
    };
}

codes! {
    InvalidChannel "invalid_channel" BAD_REQUEST "A channel name is not valid",
    InvalidType "invalid_event_type" BAD_REQUEST "An event type is not valid",
    InvalidFilter "invalid_filter" BAD_REQUEST "The filter is not valid",
    InvalidQuery "invalid_query" BAD_REQUEST "A query parameter is not valid",
    InvalidBody "invalid_body" BAD_REQUEST "The body is not what the call takes",
    InvalidIdempotency "invalid_idempotency_key" BAD_REQUEST "The idempotency key or its window is not valid",
    TooManyChannels "too_many_channels" BAD_REQUEST "More channels than one connection may have",
    TokenRequired "token_required" UNAUTHORIZED "A token is needed",
    TokenInvalid "token_invalid" UNAUTHORIZED "The token is not valid here",
    TokenExpired "token_expired" UNAUTHORIZED "The token has expired",
    TokenRevoked "token_revoked" UNAUTHORIZED "The token was revoked",
    Forbidden "forbidden" FORBIDDEN "The token does not allow this",
    ForbiddenHost "forbidden_host" FORBIDDEN "An open broker answers to loopback names only",
    ForbiddenOrigin "forbidden_origin" FORBIDDEN "Pages of this origin may not do this",
    NotFound "not_found" NOT_FOUND "There is nothing at this path",
    ChannelNotFound "channel_not_found" NOT_FOUND "The channel holds no events",
    MethodNotAllowed "method_not_allowed" METHOD_NOT_ALLOWED "The path does not take this method",
    RequestTimeout "request_timeout" REQUEST_TIMEOUT "The body did not arrive in time",
    ChannelPoisoned "channel_poisoned" CONFLICT "The channel holds an entry from the future",
    ChannelBlocked "channel_blocked" CONFLICT "The channel's key holds something else",
    DataTooLarge "data_too_large" PAYLOAD_TOO_LARGE "The data of an event is too large",
    BatchTooLarge "batch_too_large" PAYLOAD_TOO_LARGE "A batch has too many events or bytes",
    HeadTooLarge "head_too_large" REQUEST_HEADER_FIELDS_TOO_LARGE "The head of the request is too large",
    RateLimited "rate_limited" TOO_MANY_REQUESTS "More than one caller may have, or may do in this time",
    UnsupportedMediaType "unsupported_media_type" UNSUPPORTED_MEDIA_TYPE "The call does not take this content type",
    Overloaded "overloaded" SERVICE_UNAVAILABLE "The node has more to do than it takes on",
    Unavailable "unavailable" SERVICE_UNAVAILABLE "Something that is needed cannot be reached now",
    Damaged "damaged" INTERNAL_SERVER_ERROR "The log holds something that contradicts its layout",
}

impl Code {
    /// What `WWW-Authenticate` says (RFC 6750, section 3): no error where nothing was presented.
    fn challenge(self) -> Option<&'static str> {
        match self {
            Self::TokenRequired => Some("Bearer realm=\"headwater\""),
            Self::TokenInvalid | Self::TokenExpired | Self::TokenRevoked => {
                Some("Bearer realm=\"headwater\", error=\"invalid_token\"")
            }
            Self::Forbidden => Some("Bearer realm=\"headwater\", error=\"insufficient_scope\""),
            _ => None,
        }
    }
}

/// An error on its way out.
#[derive(Debug)]
pub struct Problem {
    code: Code,
    detail: String,
    extra: Map<String, Value>,
    retry_after: Option<Duration>,
}

impl Problem {
    /// `detail` says what is wrong, where, and how to mend it.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), extra: Map::new(), retry_after: None }
    }

    /// The query parameter `name` is not valid.
    pub fn query(name: &str, reason: impl std::fmt::Display) -> Self {
        Self::new(Code::InvalidQuery, format!("{name}: {reason}"))
    }

    /// Adds a member.
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.extra.insert(name.to_owned(), value.into());
        self
    }

    /// Tells when to try again, in whole seconds.
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// The kind of error.
    pub fn code(&self) -> Code {
        self.code
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.code.status();
        let mut body = Map::new();
        body.insert("type".to_owned(), json!("about:blank"));
        body.insert("title".to_owned(), json!(self.code.title()));
        body.insert("status".to_owned(), json!(status.as_u16()));
        body.insert("code".to_owned(), json!(self.code.as_str()));
        body.insert("detail".to_owned(), json!(self.detail));
        body.extend(self.extra);
        let mut response = (status, format!("{}\n", Value::Object(body))).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(challenge) = self.code.challenge() {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        if let Some(after) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(whole_seconds(after)));
        }
        metrics::mark(&mut response, self.code);
        response
    }
}

/// Rounded up, at least one.
fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0 || duration.is_zero())
}

impl From<InvalidChannel> for Problem {
    fn from(error: InvalidChannel) -> Self {
        Self::new(Code::InvalidChannel, error.to_string())
    }
}

impl From<InvalidType> for Problem {
    fn from(error: InvalidType) -> Self {
        Self::new(Code::InvalidType, error.to_string())
    }
}

impl From<InvalidFilter> for Problem {
    fn from(error: InvalidFilter) -> Self {
        Self::new(Code::InvalidFilter, error.to_string())
    }
}

impl From<LogError> for Problem {
    fn from(error: LogError) -> Self {
        let code = match &error {
            LogError::Unavailable(_) | LogError::Unknown(_) | LogError::Refused(_) => Code::Unavailable,
            LogError::Damaged(_) => Code::Damaged,
            LogError::Channel(refusal) => return Self::from(refusal.clone()),
            LogError::BadCursor => return Self::query("cursor", &error),
        };
        if code == Code::Damaged {
            tracing::error!(%error, "a request met damage in the log");
        }
        let problem = Self::new(code, error.to_string());
        if error.is_retryable() { problem.retry_after(Duration::from_secs(1)) } else { problem }
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let code = match refusal {
            Refusal::Poisoned(_) => Code::ChannelPoisoned,
            Refusal::WrongType(..) => Code::ChannelBlocked,
        };
        Self::new(code, refusal.to_string())
    }
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        let (code, retry_after) = match refused {
            Refused::Full => (Code::Overloaded, Some(Duration::from_secs(2))),
            Refused::Limited { retry_after, .. } => (Code::RateLimited, Some(retry_after)),
            Refused::TooMany(..) => (Code::BatchTooLarge, None),
        };
        let problem = Self::new(code, refused.to_string());
        match retry_after {
            Some(after) => problem.retry_after(after),
            None => problem,
        }
    }
}

impl From<PublishError> for Problem {
    fn from(error: PublishError) -> Self {
        let outcome = match error.outcome() {
            Outcome::NotPublished => "not_published",
            Outcome::Unknown => "unknown",
        };
        let problem = match error {
            PublishError::Refused(refusal) => return Self::from(refusal),
            PublishError::Log(error) => Self::from(error),
            PublishError::Overloaded => {
                Self::new(Code::Overloaded, error.to_string()).retry_after(Duration::from_secs(1))
            }
            PublishError::Stopping | PublishError::TimedOut => {
                Self::new(Code::Unavailable, error.to_string()).retry_after(Duration::from_secs(1))
            }
        };
        problem.with("outcome", outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_stands_in_the_documented_table_with_its_status() {
        let table = include_str!("../../docs/errors.md");
        for code in Code::ALL {
            let row = format!("| `{}` | {} |", code.as_str(), code.status().as_u16());
            assert!(table.contains(&row), "docs/errors.md lacks {row}");
        }
        let is_row =
            |line: &&str| line.split('|').nth(2).is_some_and(|status| status.trim().parse::<u16>().is_ok());
        let rows = table.lines().filter(is_row).count();
        assert_eq!(rows, Code::ALL.len(), "docs/errors.md lists codes that do not exist");
    }
}
