//! nginx and HAProxy between clients and broker, with the very files that docs/proxies recommends: events pass at
//! once, and clients resume exactly. What a default spoils, and what mends it, is in `defaults.rs`.
//!
//! The tests were seen to fail with `proxy_ignore_headers X-Accel-Buffering` in the small file of nginx, and, in the
//! recommended ones, without `error_page` and `set-status`, and with these for requests that ask for no stream. Those of
//! clients that resume, also with a broker that prefers the cursor of the URL to the header's.

mod defaults;

use std::sync::Arc;

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::json;

use crate::support::reverse_proxy::Setup;
use crate::support::scene::{Harm, Scene, Side};
use crate::support::{
    Broker, Client, Library, Publishing, Redis, Store, Streams, Subscribe, read_log, recommended, until,
};

const CONFIGURATIONS: [&str; 4] = ["nginx-minimal.conf", "nginx.conf", "haproxy-minimal.cfg", "haproxy.cfg"];

const LIBRARIES: [Library; 7] = [
    Library::Chromium,
    Library::FetchEventSource,
    Library::EventSource5,
    Library::HttpxSse,
    Library::Sseclient,
    Library::RustEventsourceClient,
    Library::Curl,
];

/// What clients bear whatever the configuration: the broker is always there.
const HARMS: [Harm; 6] = [
    Harm::Cut(Side::Clients),
    Harm::Cut(Side::Broker),
    Harm::CutWithinAnEvent(Side::Broker),
    Harm::Reset(Side::Broker),
    Harm::CutWithinAnEvent(Side::Clients),
    Harm::Overload,
];

/// What takes the recommended configurations: for a while there is no broker.
const ABSENCES: [Harm; 2] = [Harm::Absence, Harm::Restart];

/// The recommended configuration with clients that are told to come back sooner.
fn impatient(name: &str) -> Setup {
    if name.starts_with("nginx") {
        let times = [("2000;", "200;"), ("3000;", "300;"), ("4000;", "400;"), ("5000;", "500;")];
        times.iter().fold(recommended(name), |setup, (old, new)| setup.with(old, new))
    } else {
        recommended(name).with("rand(3000),add(2000)", "rand(300),add(200)")
    }
}

/// Seen to fail without the header `X-Accel-Buffering`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_arrives_before_the_next_is_published() {
    let broker = Broker::start(Store::Embedded).await;
    for name in CONFIGURATIONS {
        let proxy = recommended(name).start(&[broker.addr]).await;
        let mut reader = Subscribe::to(&["a"]).connect(proxy.addr).await;
        for number in 0..10 {
            let data = format!("{number} through {name}");
            proxy.http.publish("a", data.as_str()).await;
            assert_eq!(reader.one().await, data);
        }
    }
}

/// An end that is one, and not a break: seen to fail with a last chunk that is not sent.
async fn the_end_of_a_stream_passes_as_an_end(streams: Streams) {
    let setting = Broker::on(Store::Embedded).await.streams(streams).set("sse.lifetime_max", "300ms");
    let broker = setting.start().await;
    for name in CONFIGURATIONS {
        let proxy = recommended(name).start(&[broker.addr]).await;
        let mut reader = Subscribe::to(&["a"]).connect(proxy.addr).await;
        let closing = reader.next_control("closing").await;
        assert_eq!(closing.json(), json!({ "reason": "lifetime", "reconnect": true }), "{name}");
        reader.end().await;
        assert!(!reader.is_broken(), "{name} passes the end on as the end of the body");
        proxy.http.send(Method::HEAD, "/events?channels=a", &[], "").await.expect(200);
    }
}

both_streams!(the_end_of_a_stream_passes_as_an_end);

async fn clients_miss_nothing_through(setup: Setup, store: Store, harms: &[&[Harm]]) {
    let mut scene = Scene::open(store, &LIBRARIES, Some(setup)).await;
    for harm in harms.concat() {
        scene.harm(harm).await;
    }
    scene.prove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_miss_nothing_through_nginx_and_its_defaults() {
    clients_miss_nothing_through(recommended("nginx-minimal.conf"), Store::Embedded, &[&HARMS]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_miss_nothing_through_nginx_as_recommended() {
    clients_miss_nothing_through(impatient("nginx.conf"), Store::Redis, &[&HARMS, &ABSENCES]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_miss_nothing_through_haproxy_and_its_defaults() {
    clients_miss_nothing_through(recommended("haproxy-minimal.cfg"), Store::Embedded, &[&HARMS]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_miss_nothing_through_haproxy_as_recommended() {
    clients_miss_nothing_through(impatient("haproxy.cfg"), Store::Redis, &[&HARMS, &ABSENCES]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_a_node_that_dies_go_on_at_another() {
    for name in ["nginx.conf", "haproxy.cfg"] {
        let redis = Arc::new(Redis::start().await);
        let node = || Broker::on_redis(&redis).set("sse.retry", "100ms").set("retention.max_length", "10000");
        let (mut one, mut two) = tokio::join!(node().start(), node().start());
        let proxy = impatient(name).start(&[one.addr, two.addr]).await;
        let cursor = one.http.cursor("a").await;
        let news = Publishing::start(one.addr, &["a"]);
        let mut clients = Vec::new();
        for _ in 0..4 {
            let mut client = Client::start(Library::RustEventsourceClient).await;
            client.subscribe(&proxy.url(), &["a", "fence"], &cursor).await;
            client.tells("an event", |told| (told.recorder.received() > 0).then_some(())).await;
            clients.push(client);
        }
        for node in [&mut two, &mut one] {
            let connections = |client: &Client| client.told(|told| told.recorder.connections());
            let before: usize = clients.iter().map(connections).sum();
            node.kill9();
            until("those that were connected there are elsewhere", async || {
                (clients.iter().map(connections).sum::<usize>() > before).then_some(())
            })
            .await;
            node.restart().await;
        }
        let ledger = news.stop().await;
        let (log, fence) = read_log(one.addr, &["a"]).await;
        ledger.check(&log[..log.len() - 1]).unwrap_or_else(|why| panic!("{why}"));
        join_all(clients.iter_mut().map(|client| client.proves(&log, &fence))).await;
    }
}

/// Seen to fail when nginx does not look at the method, and when HAProxy does not look at what is accepted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_who_publishes_takes_the_proxys_answer_for_the_brokers() {
    for name in ["nginx.conf", "haproxy.cfg"] {
        let mut broker = Broker::start(Store::Embedded).await;
        let proxy = recommended(name).start(&[broker.addr]).await;
        broker.kill9();
        for path in ["/events", "/channels/a/events"] {
            let headers =
                [("content-type", "application/json"), ("accept", "application/json, text/event-stream")];
            let body = json!([{ "channel": "a", "data": 1 }]).to_string();
            let answer = proxy.http.send(Method::POST, path, &headers, body).await;
            assert!([502, 503].contains(&answer.status), "{name} {path}: {answer:?}");
        }
        let no_stream = proxy.http.get("/events").await;
        assert_eq!(no_stream.status, 503, "{name}: who does not ask for a stream understands a status");
        let mut stream = Subscribe::to(&["a"]).header("Origin", "https://app.example").open(proxy.addr).await;
        assert_eq!(stream.status, 200, "{name}");
        assert_eq!(stream.header("content-type"), Some("text/event-stream; charset=utf-8"), "{name}");
        assert_eq!(stream.header("access-control-allow-origin"), Some("https://app.example"), "{name}");
        let closing = stream.next_control("closing").await;
        assert_eq!(closing.data, r#"{"reason":"unavailable","reconnect":true}"#, "as the broker says it");
        assert!((2_000..=5_000).contains(&closing.retry.expect("a hint when to come back")), "{name}");
        stream.end().await;
    }
}
