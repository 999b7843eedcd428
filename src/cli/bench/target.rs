//! What is measured: where to subscribe and publish, as bytes to send.
//!
//! Templates make it any server: `{channel}` stands for a channel, `{connection}` for the number of a connection, `{data}` for
//! the data of an event. A template that begins with `/` belongs to `--url`, one that begins with `http://` to
//! another server.

use std::net::SocketAddr;

use anyhow::{Context, anyhow};
use clap::{Args, ValueEnum};
use reqwest::Url;
use tokio::net::{TcpSocket, TcpStream, lookup_host};

use super::super::Failure;
use super::super::client::{self, ClientArgs};

/// How to reach the server.
#[derive(Args)]
pub(super) struct TargetArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// Where a subscriber connects; {channel} and {connection}, its number, are filled in
    #[arg(long, value_name = "TEMPLATE", default_value = "/events?channels={channel}")]
    subscribe: String,
    /// A header of every subscriber, as in "Name: value"; repeatable
    #[arg(long, value_name = "HEADER")]
    subscribe_header: Vec<String>,
    /// When a subscriber counts as connected
    #[arg(long, value_enum, default_value_t = Ready::Event)]
    ready: Ready,
    /// Where events are published
    #[arg(long, value_name = "TEMPLATE", default_value = "/channels/{channel}/events")]
    publish: String,
    /// How events are published
    #[arg(long, value_name = "METHOD", default_value = "POST")]
    publish_method: String,
    /// A header of every publish; repeatable
    #[arg(long, value_name = "HEADER", default_value = "Content-Type: text/plain")]
    publish_header: Vec<String>,
    /// Body of a publish; {data} and {channel} are filled in, and {data} holds nothing that JSON would escape
    #[arg(long, value_name = "TEMPLATE", default_value = "{data}")]
    publish_body: String,
}

/// When a subscriber counts as connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Ready {
    /// The event `connected` has come
    Event,
    /// The head of the answer has come, for servers that send no such event
    Head,
}

/// A server to measure.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) url: String,
    pub(super) ready: Ready,
    subscribe: Endpoint,
    subscribe_headers: String,
    publish: Endpoint,
    publish_method: String,
    publish_headers: String,
    publish_body: String,
    lines: Endpoint,
    /// Headers that every request has.
    headers: String,
}

/// An address and the template of a path there.
#[derive(Debug)]
struct Endpoint {
    address: SocketAddr,
    authority: String,
    path: String,
}

impl Target {
    pub(super) async fn new(arguments: &TargetArgs) -> Result<Self, Failure> {
        let base = client::base_url(&arguments.client.url).map_err(Failure::usage)?;
        let token = arguments.client.token.as_deref().filter(|token| !token.is_empty());
        let authorization = token.map(|token| format!("Authorization: Bearer {token}"));
        let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        let method = &arguments.publish_method;
        if method.is_empty() || !method.chars().all(is_token) {
            return Err(Failure::usage(anyhow!("--publish-method {method:?} is no HTTP method")));
        }
        Ok(Self {
            url: base.to_string(),
            ready: arguments.ready,
            subscribe: Endpoint::resolve(&base, "--subscribe", &arguments.subscribe).await?,
            subscribe_headers: headers("--subscribe-header", &arguments.subscribe_header)?,
            publish: Endpoint::resolve(&base, "--publish", &arguments.publish).await?,
            publish_method: method.clone(),
            publish_headers: headers("--publish-header", &arguments.publish_header)?,
            publish_body: arguments.publish_body.clone(),
            lines: Endpoint::resolve(&base, "--url", "/events").await?,
            headers: headers("--token", authorization.as_slice())?,
        })
    }

    /// A socket on its way to where subscribers connect. A small receive buffer makes the server see soon that
    /// nothing is read.
    pub(super) async fn connect_subscriber(&self, receive_buffer: Option<u32>) -> std::io::Result<TcpStream> {
        let address = self.subscribe.address;
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        if let Some(bytes) = receive_buffer {
            socket.set_recv_buffer_size(bytes)?;
        }
        socket.connect(address).await
    }

    /// A socket to where events are published.
    pub(super) async fn connect_publisher(&self) -> anyhow::Result<TcpStream> {
        self.publish.connect().await
    }

    /// A socket to where lines are published.
    pub(super) async fn connect_lines(&self) -> anyhow::Result<TcpStream> {
        self.lines.connect().await
    }

    /// The request of a subscriber.
    pub(super) fn subscription(&self, channel: &str, connection: usize, cursor: Option<&str>) -> String {
        let path = self
            .subscribe
            .path
            .replace("{channel}", channel)
            .replace("{connection}", &connection.to_string());
        let cursor = cursor.map(|cursor| format!("Last-Event-ID: {cursor}\r\n")).unwrap_or_default();
        let (authority, common, own) = (&self.subscribe.authority, &self.headers, &self.subscribe_headers);
        format!(
            "GET {path} HTTP/1.1\r\nHost: {authority}\r\nAccept: text/event-stream\r\n{common}{own}{cursor}\r\n"
        )
    }

    /// Writes the request that publishes this data.
    pub(super) fn publication(&self, channel: &str, data: &[u8], request: &mut Vec<u8>) {
        let path = self.publish.path.replace("{channel}", channel);
        let template = self.publish_body.replace("{channel}", channel);
        let (before, after) = template.split_once("{data}").unwrap_or((&template, ""));
        let length = before.len() + data.len() + after.len();
        let (method, authority) = (&self.publish_method, &self.publish.authority);
        let (common, own) = (&self.headers, &self.publish_headers);
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {authority}\r\n{common}{own}Content-Length: {length}\r\n\r\n{before}"
        );
        request.clear();
        for part in [head.as_bytes(), data, after.as_bytes()] {
            request.extend_from_slice(part);
        }
    }

    /// The head of a request that publishes a stream of lines of any length, in chunks.
    pub(super) fn line_stream(&self) -> String {
        let (Endpoint { authority, path, .. }, common) = (&self.lines, &self.headers);
        format!(
            "POST {path} HTTP/1.1\r\nHost: {authority}\r\n{common}Content-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
    }
}

impl Endpoint {
    async fn connect(&self) -> anyhow::Result<TcpStream> {
        let connected = TcpStream::connect(self.address).await;
        let socket = connected.with_context(|| {
            format!("cannot connect to {}; does the server run? --url says where", self.authority)
        })?;
        socket.set_nodelay(true)?;
        Ok(socket)
    }

    async fn resolve(base: &Url, flag: &str, template: &str) -> Result<Self, Failure> {
        let unfit = |what: &str| {
            let text = format!(
                "{flag} {template:?}: {what}; expected a path that begins with / or an address with http://"
            );
            Failure::usage(anyhow!(text))
        };
        if template.chars().any(|c| c.is_control() || c == ' ') {
            return Err(unfit("it holds a space or a control character, which a path writes with %"));
        }
        let (base, path) = match template.strip_prefix("http://") {
            Some(rest) => {
                let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
                let other = Url::parse(&format!("http://{authority}/"));
                (other.map_err(|_| unfit("its server is none"))?, path.to_owned())
            }
            None if template.starts_with('/') => {
                (base.clone(), format!("{}{template}", base.path().trim_end_matches('/')))
            }
            None => return Err(unfit("it is no path")),
        };
        let host = base.host_str().unwrap_or_default();
        let port = base.port_or_known_default().unwrap_or(80);
        let lookup = lookup_host((host.trim_matches(['[', ']']), port)).await;
        let found = lookup.context(format!("{host} has no address")).map_err(Failure::unavailable)?.next();
        let address = found.ok_or_else(|| Failure::unavailable(anyhow!("{host} has no address")))?;
        Ok(Self { address, authority: format!("{host}:{port}"), path })
    }
}

/// Lines of a head, each checked.
fn headers(flag: &str, given: &[String]) -> Result<String, Failure> {
    let mut lines = String::new();
    for header in given {
        let name = header.split_once(':').map_or("", |(name, _)| name);
        if name.is_empty() || name.contains(char::is_whitespace) || header.contains(char::is_control) {
            return Err(Failure::usage(anyhow!("{flag}: expected a header as in \"Name: value\"")));
        }
        lines.push_str(header);
        lines.push_str("\r\n");
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::super::Exit;
    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        target: TargetArgs,
    }

    async fn target(arguments: &[&str]) -> Result<Target, Failure> {
        let line = ["bench", "--url", "http://127.0.0.1:81/broker/"].iter().chain(arguments);
        Target::new(&Line::try_parse_from(line).unwrap().target).await
    }

    #[tokio::test]
    async fn a_broker_needs_no_templates() {
        let target = target(&["--token", "t"]).await.unwrap();
        assert_eq!(
            target.subscription("a", 7, Some("01J")),
            "GET /broker/events?channels=a HTTP/1.1\r\nHost: 127.0.0.1:81\r\nAccept: text/event-stream\r\n\
             Authorization: Bearer t\r\nLast-Event-ID: 01J\r\n\r\n"
        );
        let mut request = Vec::new();
        target.publication("a", b"#1", &mut request);
        assert_eq!(
            String::from_utf8(request).unwrap(),
            "POST /broker/channels/a/events HTTP/1.1\r\nHost: 127.0.0.1:81\r\nAuthorization: Bearer t\r\n\
             Content-Type: text/plain\r\nContent-Length: 2\r\n\r\n#1"
        );
    }

    #[tokio::test]
    async fn templates_make_it_any_server() {
        let arguments = [
            "--subscribe",
            "/sub?id={channel}&c={connection}",
            "--subscribe-header",
            "X-A: 1",
            "--subscribe-header",
            "X-B: 2",
            "--publish",
            "http://127.0.0.1:82/pub?id={channel}",
            "--publish-method",
            "PUT",
            "--publish-header",
            "X-C: 3",
            "--publish-body",
            "{\"text\":\"{data}\"}",
        ];
        let target = target(&arguments).await.unwrap();
        let subscription = target.subscription("a", 7, None);
        assert!(subscription.starts_with("GET /broker/sub?id=a&c=7 HTTP/1.1\r\n"), "{subscription}");
        assert!(subscription.ends_with("X-A: 1\r\nX-B: 2\r\n\r\n"), "{subscription}");
        let mut request = b"what was there before".to_vec();
        target.publication("a", b"#1", &mut request);
        let expected = "PUT /pub?id=a HTTP/1.1\r\nHost: 127.0.0.1:82\r\nX-C: 3\r\nContent-Length: 13\r\n\r\n{\"text\":\"#1\"}";
        assert_eq!(String::from_utf8(request).unwrap(), expected);
        assert_eq!(target.publish.address.port(), 82);
    }

    #[tokio::test]
    async fn what_cannot_be_sent_is_refused_and_named() {
        for (flag, value) in [
            ("--subscribe", "events"),
            ("--subscribe", "/a b"),
            ("--publish", "http:///x"),
            ("--publish-header", "x"),
            ("--subscribe-header", "A: b\r\nC: d"),
            ("--publish-method", "GET /"),
        ] {
            let failure = target(&[flag, value]).await.unwrap_err();
            assert_eq!(failure.exit, Exit::Usage, "{flag} {value}");
            let message = format!("{:#}", failure.message.unwrap());
            assert!(message.starts_with(flag), "{flag} {value}: {message}");
        }
    }
}
