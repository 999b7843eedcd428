//! What the defaults of proxies spoil, each seen to happen, and the setting that mends it, which docs/proxies.md names.
//!
//! Nothing here measures a time: what is late is overtaken by what is not.

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::support::reverse_proxy::Setup;
use crate::support::{Broker, Client, Library, Proxy, ReverseProxy, Store, Subscribe, recommended, until};

/// HAProxy's small file with one more line for everything.
fn haproxy_with(line: &str) -> Setup {
    recommended("haproxy-minimal.cfg").with_line(line, "    timeout connect 5000")
}

/// nginx's small file with one more line for everything.
fn nginx_with(line: &str) -> Setup {
    recommended("nginx-minimal.conf").with_line(line, "        proxy_pass")
}

/// Seen to fail without `option http-no-delay` in the recommended file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn haproxy_makes_every_event_wait_unless_told_not_to() {
    let broker = Broker::start(Store::Embedded).await;
    let mended = recommended("haproxy.cfg");
    let waiting = mended.clone().without_line("option http-no-delay");
    let (waiting, mended) = (waiting.start(&[broker.addr]).await, mended.start(&[broker.addr]).await);
    let mut waiting = Subscribe::to(&["a"]).connect(waiting.addr).await;
    let mut mended = Subscribe::to(&["a"]).connect(mended.addr).await;
    let mut overtaken = 0;
    for number in 0..10 {
        broker.http.publish("a", number).await;
        // Both got it at the same moment; the slower one is asked first.
        tokio::select! {
            biased;
            _ = waiting.one() => { mended.one().await; }
            _ = mended.one() => {
                overtaken += 1;
                waiting.one().await;
            }
        }
    }
    assert!(overtaken >= 8, "of 10 events {overtaken} were overtaken");
}

/// A broker with room for one stream, which a client behind this proxy took and left.
async fn left_behind(setup: Setup) -> (Broker, ReverseProxy) {
    let broker = Broker::on(Store::Embedded).await.set("limits.connections_max", "1").start().await;
    let proxy = setup.start(&[broker.addr]).await;
    drop(Subscribe::to(&["a"]).connect(proxy.addr).await);
    (broker, proxy)
}

async fn has_room(broker: &Broker) -> bool {
    let first = Subscribe::to(&[]).open(broker.addr).await.next().await;
    first.expect("a stream says something").kind == "connected"
}

/// Seen to fail without `option abortonclose` in the recommended file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn haproxy_keeps_the_stream_of_a_client_that_left_unless_told_not_to() {
    let mended = recommended("haproxy.cfg");
    let (held, _haproxy) = left_behind(mended.clone().without_line("option abortonclose")).await;
    for setup in [mended, recommended("nginx-minimal.conf"), recommended("nginx.conf")] {
        let (free, _proxy) = left_behind(setup).await;
        until("the stream is gone", async || has_room(&free).await.then_some(())).await;
    }
    assert!(!has_room(&held).await, "it is noticed only when heartbeats cannot be written");
}

/// How many bytes of events it takes until the head of a response comes.
async fn bytes_before_the_head(broker: &Broker, proxy: &ReverseProxy) -> usize {
    const EVENT: usize = 500;
    let subscribe = Subscribe::to(&["a"]);
    let mut stream = std::pin::pin!(subscribe.open(proxy.addr));
    for events in 0.. {
        if let Ok(mut stream) = tokio::time::timeout(LOOK, &mut stream).await {
            stream.next_control("connected").await;
            return events * EVENT;
        }
        broker.http.publish("a", "x".repeat(EVENT)).await;
    }
    unreachable!("`open` has a deadline")
}

/// How long a look takes at something that should have come by itself.
const LOOK: std::time::Duration = std::time::Duration::from_millis(50);

/// Seen to fail without the header `X-Accel-Buffering`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_nginx_holds_events_back_unless_told_not_to() {
    let broker = Broker::start(Store::Embedded).await;
    // The header X-Accel-Buffering ends at the nginx that reads it.
    let inner = recommended("nginx-minimal.conf").start(&[broker.addr]).await;
    let outer = recommended("nginx-minimal.conf").start(&[inner.addr]).await;
    let bytes = bytes_before_the_head(&broker, &outer).await;
    assert!(bytes > 2_000, "even the head waits until a buffer is full; it came after {bytes} bytes");
    let passing_on = nginx_with("proxy_pass_header X-Accel-Buffering;").start(&[broker.addr]).await;
    let behind_it = recommended("nginx-minimal.conf").start(&[passing_on.addr]).await;
    let told = nginx_with("proxy_buffering off;").start(&[inner.addr]).await;
    for outer in [behind_it, told, recommended("nginx.conf").start(&[inner.addr]).await] {
        let mut stream = Subscribe::to(&["a"]).connect(outer.addr).await;
        broker.http.publish("a", "at once").await;
        assert_eq!(stream.one().await, "at once");
    }
}

/// A stream that nothing comes over but heartbeats.
async fn quiet_stream(
    setup: Setup,
    heartbeat_interval: &str,
) -> (Broker, ReverseProxy, crate::support::sse::SseReader) {
    let setting = Broker::on(Store::Embedded).await.set("sse.heartbeat_interval", heartbeat_interval);
    let broker = setting.start().await;
    let proxy = setup.start(&[broker.addr]).await;
    let stream = Subscribe::to(&["a"]).connect(proxy.addr).await;
    (broker, proxy, stream)
}

/// Seen to fail with a session that sends no heartbeats.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quiet_stream_lives_as_long_as_heartbeats_come_before_the_proxys_patience_ends() {
    let impatient = [
        nginx_with("proxy_read_timeout 1s;"),
        recommended("haproxy-minimal.cfg").with("timeout server  50000", "timeout server 1s"),
        recommended("haproxy-minimal.cfg").with(
            "timeout server  50000",
            "timeout server 1s\ntimeout tunnel 1h\ntimeout http-keep-alive 1h",
        ),
    ];
    // What is said about the client's side is not about streams.
    let client_side = recommended("haproxy-minimal.cfg").with("timeout client  50000", "timeout client 1s");
    let (broker, _proxy, mut unaffected) = quiet_stream(client_side, "1h").await;
    join_all(impatient.into_iter().map(async |setup| {
        let (_broker, _proxy, mut cut) = quiet_stream(setup.clone(), "1h").await;
        let (_broker, _proxy, mut alive) = quiet_stream(setup, "200ms").await;
        assert_eq!(cut.next().await, None, "the proxy ends the stream");
        for _ in 0..10 {
            assert_eq!(alive.next().await.expect("it lives").kind, "heartbeat");
        }
    }))
    .await;
    broker.http.publish("a", "still here").await;
    assert_eq!(unaffected.one().await, "still here");
}

/// Seen to fail with an `error_page` in the small file that answers with a stream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_source_gives_up_when_a_proxy_answers_for_a_broker_that_is_away() {
    for (name, library) in
        [("nginx-minimal.conf", Library::Chromium), ("haproxy-minimal.cfg", Library::EventSource5)]
    {
        let mut client = Client::start(library).await;
        let origins = json!(if client.origin.is_empty() { vec![] } else { vec![&client.origin] }).to_string();
        let setup = Broker::on(Store::Embedded).await.set("cors.allowed_origins", &origins);
        let mut broker = setup.set("sse.retry", "100ms").start().await;
        let proxy = recommended(name).start(&[broker.addr]).await;
        client.subscribe(&proxy.url(), &["a"], "earliest").await;
        client.tells("that it is connected", |told| (told.count("connected") > 0).then_some(())).await;
        broker.kill9();
        // EventSource.CLOSED (HTML, "Server-sent events", 9.2.2).
        let closed = |note: &Value| note["state"] == 2;
        client.tells("that it gave up", |told| told.notes.iter().any(closed).then_some(())).await;
        client.close().await;
    }
}

/// Seen to fail without `client_max_body_size` in the recommended file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nginx_refuses_a_large_batch_unless_told_not_to() {
    let broker = Broker::start(Store::Embedded).await;
    let batch: Vec<_> =
        (0..8).map(|n| json!({ "channel": n.to_string(), "data": "x".repeat(200_000) })).collect();
    let lines = batch.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    let minimal = recommended("nginx-minimal.conf").start(&[broker.addr]).await;
    minimal.http.post("/events", &batch.clone().into()).await.expect(413);
    minimal.http.publish_ndjson(lines.clone()).await.expect(413);
    for name in ["nginx.conf", "haproxy-minimal.cfg", "haproxy.cfg"] {
        let proxy = recommended(name).start(&[broker.addr]).await;
        proxy.http.post("/events", &batch.clone().into()).await.expect(200);
        proxy.http.publish_ndjson(lines.clone()).await.expect(200);
    }
}

/// Seen to fail when `Host` is not looked at.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_broker_on_loopback_knows_no_public_name_unless_the_proxy_hides_it() {
    let get = async |proxy: &ReverseProxy, headers: &[(&str, &str)]| {
        proxy.http.send(reqwest::Method::GET, "/cursor?channels=a", headers, "").await.status
    };
    let public = ("host", "events.example");
    let status = async |proxy: &ReverseProxy| get(proxy, &[public]).await;
    let guarded = Broker::start(Store::Embedded).await;
    let own_name = recommended("nginx-minimal.conf").start(&[guarded.addr]).await;
    assert_eq!(status(&own_name).await, 200, "nginx sends the address that it connects to");
    let upstream = recommended("nginx-minimal.conf").with("http://127.0.0.1:8080", "http://brokers");
    let upstream = upstream.with_line("upstream brokers { server 127.0.0.1:8080; }", "server {");
    assert_eq!(status(&upstream.start(&[guarded.addr]).await).await, 403, "or the upstream's name");
    let page = "https://events.example";
    let listed = Broker::on(Store::Embedded).await.set("cors.allowed_origins", &format!("[\"{page}\"]"));
    let listed = listed.start().await;
    let server = "    server one";
    let set_header = format!("    http-request set-header Host localhost\n{server}");
    for (name, line, hiding) in [
        ("nginx.conf", "Host $http_host", "Host localhost"),
        ("haproxy-minimal.cfg", server, &set_header),
        ("haproxy.cfg", server, &set_header),
    ] {
        let proxy = recommended(name).start(&[guarded.addr]).await;
        assert_eq!(status(&proxy).await, 403, "{name} passes the public name on");
        let proxy = recommended(name).with(line, hiding).start(&[listed.addr]).await;
        assert_eq!(status(&proxy).await, 200, "{name}");
        assert_eq!(get(&proxy, &[public, ("origin", page)]).await, 200, "{name}");
        assert_eq!(get(&proxy, &[public, ("origin", "https://evil.example")]).await, 403, "{name}");
    }
}

/// Over HTTP/1.0, nginx's default, the end of a connection is the end of a response, wherever it came. Seen to fail
/// with `proxy_http_version 1.1` in the small file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_breaks_behind_nginx_looks_like_a_regular_end() {
    for (library, expected) in [
        (Library::SseclientCareless, ["half an event", "last"]),
        (Library::Sseclient, ["half an event and the rest", "last"]),
    ] {
        let broker = Broker::on(Store::Embedded).await.set("sse.retry", "100ms").start().await;
        let network = Proxy::to(broker.addr.port());
        let proxy = recommended("nginx-minimal.conf").start(&[network.addr()]).await;
        let mut client = Client::start(library).await.expected_to_fail();
        client.subscribe(&proxy.url(), &["a"], "earliest").await;
        client.tells("that it is connected", |told| (told.count("connected") > 0).then_some(())).await;
        network.cut_behind("half an event", 1);
        broker.http.publish("a", "half an event and the rest").await;
        broker.http.publish("a", "last").await;
        assert_eq!(client.tells_message("last").await, expected, "{library:?}");
    }
}

/// Seen to fail without `no-transform`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compression_delays_no_event() {
    let broker = Broker::start(Store::Embedded).await;
    let gzip = Subscribe::to(&["a"]).header("Accept-Encoding", "gzip");
    let nginx = nginx_with("gzip on; gzip_types text/event-stream;").start(&[broker.addr]).await;
    assert_eq!(gzip.open(nginx.addr).await.header("content-encoding"), Some("gzip"));
    let mut client = Client::start(Library::EventSource5).await;
    client.subscribe(&nginx.url(), &["a"], "earliest").await;
    for number in 0..10 {
        let data = number.to_string();
        broker.http.publish("a", data.as_str()).await;
        client.tells_message(&data).await;
    }
    let haproxy = haproxy_with("compression algo gzip\ncompression type text/event-stream");
    let haproxy = haproxy.start(&[broker.addr]).await;
    let plain = gzip.open(haproxy.addr).await;
    assert_eq!(plain.header("content-encoding"), None, "it obeys Cache-Control: no-transform");
}

/// Seen to fail with a `worker_shutdown_timeout`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_of_nginx_ends_no_stream() {
    let broker = Broker::start(Store::Embedded).await;
    let proxy = recommended("nginx.conf").start(&[broker.addr]).await;
    let mut stream = Subscribe::to(&["a"]).connect(proxy.addr).await;
    proxy.reload();
    let reloaded = "gracefully shutting down";
    until("the old worker is told to end", async || proxy.log().contains(reloaded).then_some(())).await;
    broker.http.publish("a", "over the old worker").await;
    assert_eq!(stream.one().await, "over the old worker");
}
