//! Real clients: Chromium's own `EventSource`, and curl.

use std::process::{ExitStatus, Stdio};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::support::{Broker, Store, until, within};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/js/browser.mjs");

/// A page in a browser, driven over the script's standard streams: a JSON document a line.
struct Page {
    child: Child,
    stdin: ChildStdin,
    reports: Lines<BufReader<ChildStdout>>,
    origin: String,
}

impl Page {
    async fn open() -> Self {
        let mut command = Command::new("node");
        command.arg(SCRIPT).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let started = command.spawn();
        let mut child =
            started.unwrap_or_else(|error| panic!("node cannot be started ({error}): run `make setup`"));
        let stdin = child.stdin.take().expect("stdin is piped");
        let reports = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
        let mut page = Self { child, stdin, reports, origin: String::new() };
        let first = page.report().await;
        first["origin"].as_str().expect("the page has an origin").clone_into(&mut page.origin);
        page
    }

    /// The page's next report.
    async fn report(&mut self) -> Value {
        let line =
            within("the browser's next report", self.reports.next_line()).await.expect("stdout is text");
        let line = line.expect("the browser runs; if it did not start, run `make setup`");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error} in {line}"))
    }

    /// The next report of this kind; errors and openings come as often as the browser likes.
    async fn next(&mut self, kind: &str) -> Value {
        until(&format!("the browser reports {kind}"), async || {
            let report = self.report().await;
            let passed_over = ["error", "open"].contains(&report["kind"].as_str().unwrap_or_default());
            if report["kind"] == kind {
                return Some(report);
            }
            assert!(passed_over, "expected {kind}, got {report}");
            None
        })
        .await
    }

    async fn subscribe(&mut self, url: &str) {
        self.stdin
            .write_all(format!("{}\n", json!({ "subscribe": url })).as_bytes())
            .await
            .expect("the script reads");
    }

    async fn close(self) -> ExitStatus {
        let Self { mut child, stdin, .. } = self;
        drop(stdin);
        within("the browser closes", child.wait()).await.expect("the script can be waited for")
    }
}

async fn a_browser_comes_back_by_itself_and_gets_exactly_what_it_missed(store: Store) {
    let mut page = Page::open().await;
    let setup = Broker::on(store).await.set("cors.allowed_origins", &json!([page.origin]).to_string());
    let mut broker = setup.set("sse.retry", "1500ms").start().await;
    page.subscribe(&format!("{}/events?channels=a,b", broker.url())).await;
    page.next("connected").await;
    let first = broker.http.publish("a", "1").await;
    broker.http.publish("b", "2\nlines").await;
    let report = page.next("message").await;
    assert_eq!((&report["data"], &report["id"]), (&json!("1"), &json!(first.id)));
    assert_eq!(page.next("message").await["data"], "2\nlines");

    for round in 0..2 {
        broker.kill9();
        // The browser must have noticed before anything is published that it has to catch up with.
        until("the browser notices", async || (page.report().await["kind"] == "error").then_some(())).await;
        broker.restart().await;
        let missed: Vec<String> = (0..5).map(|n| format!("missed {round}.{n}")).collect();
        broker.http.publish_all("a", &missed).await;
        page.next("connected").await;
        for data in &missed {
            assert_eq!(page.next("message").await["data"], json!(data));
        }
    }
    broker.http.publish("b", "live").await;
    assert_eq!(page.next("message").await["data"], "live");
    assert!(page.close().await.success());
}

async fn a_page_of_another_origin_gets_nothing(store: Store) {
    let mut page = Page::open().await;
    let setup = Broker::on(store).await.set("cors.allowed_origins", r#"["https://app.example"]"#);
    let broker = setup.start().await;
    broker.http.publish("a", "secret").await;
    page.subscribe(&format!("{}/events?channels=a&last_event_id=earliest", broker.url())).await;
    let report = page.report().await;
    assert_eq!(report["kind"], "error", "the browser keeps it from the page: {report}");
    assert!(page.close().await.success());
}

async fn curl_is_a_client_over_either_version_of_http(store: Store) {
    let broker = Broker::start(store).await;
    let published = broker.http.publish("a", "hello").await;
    for version in ["--http1.0", "--http1.1", "--http2-prior-knowledge"] {
        let url = format!("{}/events?channels=a&last_event_id=earliest", broker.url());
        let mut command = Command::new("curl");
        command.args(["-sN", "--noproxy", "*", version, &url]).stdout(Stdio::piped()).kill_on_drop(true);
        let started = command.spawn();
        let mut child =
            started.unwrap_or_else(|error| panic!("curl cannot be started ({error}): run `make setup`"));
        let mut lines = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
        let expected =
            ["event: message".to_owned(), format!("id: {}", published.id), "data: hello".to_owned()];
        let mut missing: Vec<&String> = expected.iter().collect();
        while !missing.is_empty() {
            let line = within("curl prints the event", lines.next_line()).await.expect("stdout is text");
            let line = line.unwrap_or_else(|| panic!("{version}: the stream ended before {missing:?}"));
            missing.retain(|expected| **expected != line);
        }
        child.kill().await.expect("curl can be killed");
    }
}

both_stores!(
    a_browser_comes_back_by_itself_and_gets_exactly_what_it_missed,
    a_page_of_another_origin_gets_nothing,
    curl_is_a_client_over_either_version_of_http,
);
