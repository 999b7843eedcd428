//! What a browser keeps from pages, and curl over every version of HTTP. What clients receive is in `clients.rs`.

use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::support::{Broker, Client, Library, Store, within};

/// Seen to fail when every origin is told that it is allowed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_of_another_origin_gets_nothing() {
    for library in [Library::Chromium, Library::FetchEventSource] {
        let setup =
            Broker::on(Store::Embedded).await.set("cors.allowed_origins", r#"["https://app.example"]"#);
        let broker = setup.start().await;
        broker.http.publish("a", "secret").await;
        let mut client = Client::start(library).await;
        client.subscribe(&broker.url(), &["a"], "earliest").await;
        client
            .tells("an error", |told| told.notes.iter().any(|note| note["note"] == "error").then_some(()))
            .await;
        client.told(|told| assert!(told.events.is_empty(), "the browser keeps it from the page: {told:?}"));
        client.close().await;
    }
}

/// Seen to fail when nothing looks for the preface of HTTP/2.
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

both_stores!(curl_is_a_client_over_either_version_of_http);
