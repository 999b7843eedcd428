//! Everything that is no event stream: publishing, looking and managing over HTTP.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use reqwest::{Body, Client, Method};
use serde_json::{Value, json};

use super::recorder::Stored;
use super::until::{DEADLINE, Wait};

/// A client of one broker. Clones share connections.
#[derive(Clone, Debug)]
pub(crate) struct Http {
    client: Client,
    base: String,
    /// Sent with every request.
    token: Option<String>,
}

/// A response that was read to its end.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// The status code.
    pub(crate) status: u16,
    headers: reqwest::header::HeaderMap,
    /// The body as text.
    pub(crate) body: String,
}

/// Acknowledgement of one published event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Receipt {
    /// The event's id as a ULID.
    pub(crate) id: String,
    /// The same as `ms-seq`.
    pub(crate) stream_id: String,
    /// The idempotency key had been used.
    pub(crate) duplicate: bool,
}

impl Answer {
    /// A header by its lower-case name; empty when absent.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("headers are ASCII here"))
    }

    /// The body as JSON, or the test fails.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    /// Requires this status; shows the answer otherwise.
    pub(crate) fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "unexpected answer: {self:?}");
        self
    }

    /// Requires a problem document (RFC 9457) of this status with a stable code; answers the document.
    pub(crate) fn problem(self, status: u16) -> Value {
        let answer = self.expect(status);
        let media_type = answer.header("content-type").split(';').next().unwrap_or_default().trim();
        assert_eq!(media_type, "application/problem+json", "{answer:?}");
        let problem = answer.json();
        assert_eq!(problem["status"], status, "{problem}");
        let code = problem["code"].as_str().unwrap_or_default();
        let is_word = |c: char| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit();
        assert!(!code.is_empty() && code.chars().all(is_word), "no stable code in {problem}");
        assert!(!problem["title"].as_str().unwrap_or_default().is_empty(), "no title in {problem}");
        problem
    }

    /// The acknowledgement of a single publish.
    pub(crate) fn receipt(&self) -> Receipt {
        let body = self.json();
        let text =
            |name: &str| body[name].as_str().unwrap_or_else(|| panic!("no {name} in {body}")).to_owned();
        let duplicate = body["duplicate"].as_bool().expect("`duplicate` is a boolean");
        Receipt { id: text("id"), stream_id: text("stream_id"), duplicate }
    }
}

impl Http {
    /// A client of the broker at `addr`; no proxy of the environment is used.
    pub(crate) fn new(addr: SocketAddr) -> Self {
        let client = Client::builder().no_proxy().timeout(DEADLINE).connect_timeout(Duration::from_secs(5));
        Self { client: client.build().expect("an HTTP client"), base: format!("http://{addr}"), token: None }
    }

    /// A client of a broker that shows a certificate of this authority, in PEM.
    pub(crate) fn over_tls(addr: SocketAddr, authority: &str) -> Self {
        let authority = reqwest::Certificate::from_pem(authority.as_bytes()).expect("a certificate in PEM");
        let client = Client::builder().no_proxy().timeout(DEADLINE).tls_certs_only([authority]);
        Self { client: client.build().expect("an HTTP client"), base: format!("https://{addr}"), token: None }
    }

    /// The same client with this token.
    pub(crate) fn bearing(&self, token: &str) -> Self {
        Self { token: Some(token.to_owned()), ..self.clone() }
    }

    /// Sends a request; the broker not answering fails the test.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Answer {
        let answer = self.try_send(method, path, headers, body).await;
        answer.unwrap_or_else(|error| panic!("{path} got no answer: {error:?}"))
    }

    /// Sends a request to a broker that may be gone.
    pub(crate) async fn try_send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Result<Answer, reqwest::Error> {
        let mut request = self.client.request(method, format!("{}{path}", self.base)).body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        let response = request.send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Ok(Answer { status, headers, body: response.text().await? })
    }

    /// `GET`.
    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], "").await
    }

    /// `DELETE`.
    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.send(Method::DELETE, path, &[], "").await
    }

    /// `POST` of a JSON document.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(Method::POST, path, &[("content-type", "application/json")], body.to_string()).await
    }

    /// Publishes one event by the fields of its JSON body.
    pub(crate) async fn publish_event(&self, channel: &str, body: &Value) -> Receipt {
        let path = format!("/channels/{}/events", escape(channel));
        self.post(&path, body).await.expect(201).receipt()
    }

    /// Publishes a `message` with this data.
    pub(crate) async fn publish(&self, channel: &str, data: impl Into<Value>) -> Receipt {
        self.publish_event(channel, &json!({ "data": data.into() })).await
    }

    /// Publishes `message`s of this data to one channel, in order and as a whole.
    pub(crate) async fn publish_all(&self, channel: &str, data: &[String]) -> Vec<String> {
        let batch: Vec<_> = data.iter().map(|data| json!({ "channel": channel, "data": data })).collect();
        let answer = self.post("/events", &batch.into()).await.expect(200).json();
        let results = answer["results"].as_array().expect("`results` is an array");
        results.iter().map(|result| result["id"].as_str().expect("results have ids").to_owned()).collect()
    }

    /// Publishes lines of NDJSON.
    pub(crate) async fn publish_ndjson(&self, lines: impl Into<Body>) -> Answer {
        self.send(Method::POST, "/events", &[("content-type", "application/x-ndjson")], lines).await
    }

    /// Publishes what must not get lost: with a key, so that an answer of 503 or none is simply tried again.
    pub(crate) async fn publish_surely(&self, channel: &str, key: &str, data: &str) -> Receipt {
        let path = format!("/channels/{}/events", escape(channel));
        let headers = [("content-type", "application/json"), ("idempotency-key", key)];
        let body = json!({ "data": data }).to_string();
        let wait = Wait::until("a publish with an idempotency key is acknowledged");
        loop {
            match self.try_send(Method::POST, &path, &headers, body.clone()).await {
                Ok(answer) if matches!(answer.status, 200 | 201) => return answer.receipt(),
                Ok(answer) => {
                    let outcome = answer.clone().problem(503)["outcome"].clone();
                    let outcome = outcome.as_str().unwrap_or_default();
                    assert!(["not_published", "unknown"].contains(&outcome), "{answer:?}");
                }
                Err(_) => {}
            }
            wait.again().await;
        }
    }

    /// The newest 1,000 events of a channel, oldest first.
    pub(crate) async fn history(&self, channel: &str) -> Vec<Stored> {
        let answer =
            self.get(&format!("/channels/{}/events?limit=1000", escape(channel))).await.expect(200).json();
        let events = answer["events"].as_array().expect("`events` is an array");
        let stored = |event: &Value| Stored {
            id: event["id"].as_str().expect("events have ids").to_owned(),
            channel: event["channel"].as_str().expect("events have channels").to_owned(),
            data: event["data"].as_str().map_or_else(|| event["data"].to_string(), ToOwned::to_owned),
        };
        events.iter().map(stored).collect()
    }

    /// Where everything that was published so far lies behind.
    pub(crate) async fn cursor(&self, channels: &str) -> String {
        let answer = self.get(&format!("/cursor?channels={}", escape(channels))).await.expect(200).json();
        answer["cursor"].as_str().expect("`cursor` is a string").to_owned()
    }
}

/// Percent-encodes everything but RFC 3986's unreserved characters.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            write!(escaped, "%{byte:02X}").expect("a String takes text");
        }
    }
    escaped
}

#[test]
fn escaping_leaves_only_unreserved_characters() {
    assert_eq!(escape("a/b c,é-._~%"), "a%2Fb%20c%2C%C3%A9-._~%25");
}
