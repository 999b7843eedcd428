//! What the client commands share: where the broker is, who asks, and how its refusals read.
//!
//! Neighbour: the broker's error mapping, which sends `application/problem+json` (RFC 9457).

use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::Args;
use headwater::channel::Channel;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use reqwest::{Client, Response, StatusCode, Url};
use serde::Deserialize;

use super::Failure;

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a call with a short answer may take.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Where the broker is and who asks.
#[derive(Args)]
pub(super) struct ClientArgs {
    /// Where the broker is
    #[arg(long, env = "HEADWATER_URL", default_value = "http://127.0.0.1:8080")]
    pub(super) url: String,
    /// Token or API key, sent as Authorization: Bearer
    #[arg(long, env = "HEADWATER_TOKEN", hide_env_values = true)]
    pub(super) token: Option<String>,
}

/// A broker to talk to.
pub(super) struct Broker {
    /// Sends requests.
    pub(super) http: Client,
    base: Url,
}

impl Broker {
    /// Validates the arguments; nothing is sent yet.
    pub(super) fn new(arguments: &ClientArgs) -> Result<Self, Failure> {
        let base = base_url(&arguments.url).map_err(Failure::usage)?;
        let mut headers = HeaderMap::new();
        if let Some(token) = arguments.token.as_deref().filter(|token| !token.is_empty()) {
            let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
                .context("the token contains a character that a header cannot carry")
                .map_err(Failure::usage)?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let mut builder = Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .user_agent(concat!("headwater/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers);
        if is_loopback(&base) {
            // A proxy for the outside world cannot reach this machine's own addresses.
            builder = builder.no_proxy();
        }
        Ok(Self { http: builder.build().map_err(Failure::internal)?, base })
    }

    /// The address of a path given in segments, each of which may contain any character.
    pub(super) fn url(&self, segments: &[&str]) -> Url {
        let mut url = self.base.clone();
        let mut path = url.path_segments_mut().expect("base_url accepts http only, which has a path");
        path.pop_if_empty().extend(segments);
        drop(path);
        url
    }

    /// The failure to tell when a request got no answer.
    pub(super) fn unreachable(&self, error: reqwest::Error) -> Failure {
        let advice = if error.is_connect() { "; is it running? --url says where" } else { "" };
        let message = format!("cannot reach the broker at {}{advice}", self.base);
        Failure::unavailable(anyhow::Error::new(error.without_url()).context(message))
    }
}

/// A channel that can stand in a path.
pub(super) fn channel(name: &str) -> Result<Channel, Failure> {
    let channel = Channel::parse(name).map_err(Failure::usage)?;
    if matches!(name, "." | "..") {
        // URLs have no way to write them: even percent-encoded they are taken as steps of the path.
        return Err(Failure::usage(anyhow!(
            "channel {name:?} cannot stand in a URL; publish it with --ndjson"
        )));
    }
    Ok(channel)
}

pub(super) fn base_url(text: &str) -> anyhow::Result<Url> {
    let url = Url::parse(text).with_context(|| {
        format!("--url {text:?} is not an address; expected one as in http://127.0.0.1:8080")
    })?;
    match url.scheme() {
        "http" | "https" => Ok(url),
        _ => Err(anyhow!("--url {text:?}: expected an address that starts with http:// or https://")),
    }
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// What a refusal says, as far as the commands use it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Problem {
    title: Option<String>,
    detail: Option<String>,
    code: Option<String>,
    line: Option<u64>,
    published: Option<u64>,
    outcome: Option<String>,
}

/// Passes an answer on, or turns a refusal into a failure.
pub(super) async fn accepted(response: Response) -> Result<Response, Failure> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let body = response.text().await.unwrap_or_default();
    let message = anyhow!(refusal(status, &body));
    Err(match status {
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => Failure::unavailable(message),
        status if status.is_server_error() => Failure::internal(message),
        _ => Failure::usage(message),
    })
}

fn refusal(status: StatusCode, body: &str) -> String {
    let problem: Problem = serde_json::from_str(body).unwrap_or_default();
    let detail = problem.detail.or(problem.title);
    let mut text = match detail {
        Some(detail) => format!("the broker refused: {detail}"),
        None => format!("the broker refused with {status}; is that a Headwater at this address?"),
    };
    if let Some(code) = problem.code {
        text = format!("{text} [{} {code}]", status.as_u16());
    }
    if let Some(line) = problem.line {
        text = format!("{text}; it stopped at line {line}");
    }
    if let Some(published) = problem.published {
        text = format!("{text}; {published} events were published before");
    }
    text.push_str(match problem.outcome.as_deref() {
        Some("unknown") => "; it may have been published: retry with the same --idempotency-key",
        Some("not_published") => "; nothing was published",
        Some("partial") => "; some of it was published",
        _ => "",
    });
    super::output::printable(&text)
}

#[cfg(test)]
mod tests {
    use super::super::Exit;
    use super::*;

    fn broker(url: &str) -> Result<Broker, Failure> {
        Broker::new(&ClientArgs { url: url.to_owned(), token: None })
    }

    #[test]
    fn channels_are_percent_encoded_into_one_segment() {
        let plain = broker("http://127.0.0.1:8080").unwrap();
        assert_eq!(
            plain.url(&["channels", "a/b?c#d%2Fé", "events"]).as_str(),
            "http://127.0.0.1:8080/channels/a%2Fb%3Fc%23d%252F%C3%A9/events"
        );
        let behind_a_prefix = broker("http://h/broker/").unwrap();
        assert_eq!(behind_a_prefix.url(&["events"]).as_str(), "http://h/broker/events");
        assert!(channel("..").is_err() && channel(".").is_err() && channel("...").is_ok());
    }

    #[test]
    fn addresses_that_this_release_cannot_reach_are_refused_in_words() {
        for (url, words) in [
            ("ftp://h", "starts with http://"),
            ("127.0.0.1:8080", "as in http://"),
            ("localhost:8080", "starts with http://"),
        ] {
            let failure = broker(url).err().unwrap();
            let message = format!("{:#}", failure.message.unwrap());
            assert_eq!(failure.exit, Exit::Usage);
            assert!(message.contains(words), "{message}");
        }
        let bad_token = ClientArgs { url: "http://h".into(), token: Some("a\nb".into()) };
        let message = format!("{:#}", Broker::new(&bad_token).err().unwrap().message.unwrap());
        assert!(!message.contains('\n'), "{message}");
    }

    #[test]
    fn refusals_read_well() {
        let status = StatusCode::BAD_REQUEST;
        let body =
            r#"{"title":"Bad","detail":"data is missing","code":"invalid_event","line":3,"published":2}"#;
        assert_eq!(
            refusal(status, body),
            "the broker refused: data is missing [400 invalid_event]; it stopped at line 3; 2 events were published before"
        );
        assert!(refusal(status, "<html>").contains("400 Bad Request"));
        let unknown = refusal(StatusCode::SERVICE_UNAVAILABLE, r#"{"title":"Away","outcome":"unknown"}"#);
        assert!(unknown.contains("--idempotency-key"), "{unknown}");
    }

    #[test]
    fn only_addresses_of_this_machine_go_past_a_proxy() {
        for (url, expected) in [
            ("http://localhost:1", true),
            ("http://127.9.9.9", true),
            ("http://[::1]:1", true),
            ("http://192.0.2.1", false),
        ] {
            assert_eq!(is_loopback(&Url::parse(url).unwrap()), expected, "{url}");
        }
    }
}
