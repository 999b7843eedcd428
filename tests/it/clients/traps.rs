//! What docs/clients.md warns of, seen to happen: libraries used as their own documentation shows.
//!
//! A library that mends its trap makes a test here fail, and docs/clients.md shorter. All were seen to fail with the
//! careful use of the same library, or with the version that docs/clients.md recommends; the careful ones beside them,
//! with a broker that prefers the cursor of the URL and with comments that are events; the last, with a body that ends
//! with its connection instead of chunks.

use crate::support::{Broker, Client, Library, Mode, Proxy, Store, Subscribe, until};

/// A client that received an event `first` over a network that can be harmed.
async fn settled(library: Library, settings: &[(&str, &str)]) -> (Broker, Proxy, Client) {
    let mut client = Client::start(library).await.expected_to_fail();
    let origins = if client.origin.is_empty() { "[]".into() } else { format!("[{:?}]", client.origin) };
    let mut setup =
        Broker::on(Store::Embedded).await.set("cors.allowed_origins", &origins).set("sse.retry", "100ms");
    for (key, value) in settings {
        setup = setup.set(key, value);
    }
    let broker = setup.start().await;
    let network = Proxy::to(broker.addr.port());
    client.subscribe(&format!("http://{}", network.addr()), &["a"], "earliest").await;
    broker.http.publish("a", "first").await;
    client.tells_message("first").await;
    (broker, network, client)
}

/// Whether the browser hands on what came right before a cut is a race: one of so many cuts shows it.
const CUTS: usize = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fetch_event_source_by_itself_loses_an_event_that_breaks_off() {
    let (broker, network, mut client) = settled(Library::FetchEventSourceCareless, &[]).await;
    let mut is_lost = false;
    for number in 0..CUTS {
        let (half, last) = (format!("half an event {number}"), format!("last {number}"));
        let event = format!("first line\nsecond line: {half} and the other half");
        network.cut_behind(&half, 1);
        broker.http.publish("a", event.as_str()).await;
        until("the connection is cut", async || (network.cuts_left() == 0).then_some(())).await;
        broker.http.publish("a", last.as_str()).await;
        is_lost = !client.tells_message(&last).await.contains(&event);
        if is_lost {
            break;
        }
    }
    assert!(is_lost, "its cursor moves at the id: line");
    client.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn npm_eventsource_2_loses_an_event_that_breaks_off_and_spoils_the_next() {
    let (broker, network, mut client) = settled(Library::EventSource2, &[]).await;
    network.cut_behind("half an event", 1);
    broker.http.publish("a", "first line\nsecond line: half an event and the other half").await;
    let connected = client.tells("a second connection", |told| {
        told.events.iter().filter(|event| event.kind == "connected").nth(1).cloned()
    });
    let connected = connected.await;
    assert!(connected.data.starts_with("first line\n{"), "it kept a line of the old one: {connected:?}");
    broker.http.publish("a", "last").await;
    assert_eq!(client.tells_message("last").await, ["first", "last"]);
}

/// Refuses the client's next connection for want of room, publishes meanwhile, and answers all data that it gets.
async fn data_around_a_refusal(library: Library) -> Vec<String> {
    let (broker, network, mut client) = settled(library, &[("limits.connections_max", "1")]).await;
    network.set(Mode::Refuse);
    network.cut();
    let other = until("the client's stream is noticed to be gone", async || {
        let mut other = Subscribe::to(&[]).open(broker.addr).await;
        (other.next().await?.kind == "connected").then_some(other)
    });
    let other = other.await;
    network.set(Mode::Pass);
    client.tells("that it was refused", |told| (told.count("closing") > 0).then_some(())).await;
    broker.http.publish("a", "meanwhile").await;
    drop(other);
    client.tells("that it is back", |told| (told.count("connected") > 1).then_some(())).await;
    broker.http.publish("a", "last").await;
    client.tells_message("last").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn httpx_sse_as_its_documentation_shows_it_forgets_its_place_when_it_is_refused() {
    let data = data_around_a_refusal(Library::HttpxSseCareless).await;
    assert_eq!(data, ["first", "first", "meanwhile", "last"], "it begins where its URL says, again");
    assert_eq!(data_around_a_refusal(Library::HttpxSse).await, ["first", "meanwhile", "last"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_crate_eventsource_client_by_itself_forgets_its_place_when_it_is_refused() {
    let data = data_around_a_refusal(Library::RustEventsourceClientCareless).await;
    assert_eq!(data, ["first", "first", "meanwhile", "last"], "it begins where its URL says, again");
    assert_eq!(data_around_a_refusal(Library::RustEventsourceClient).await, ["first", "meanwhile", "last"]);
}

/// With `sse.heartbeat = "comment"` a quiet stream has blocks that hold a comment and nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn comments_reach_users_of_httpx_sse_and_fetch_event_source_as_empty_messages() {
    let comments = [("sse.heartbeat", "comment"), ("sse.heartbeat_interval", "50ms")];
    for library in [Library::HttpxSseCareless, Library::FetchEventSourceCareless] {
        let (_broker, _network, mut client) = settled(library, &comments).await;
        // The first comment may come before the first event.
        let told = client.tells_message("").await;
        assert!(["first", ""].iter().all(|data| told.iter().any(|seen| seen == data)), "{told:?}");
        client.close().await;
    }
    for library in [Library::HttpxSse, Library::FetchEventSource, Library::EventSource5] {
        assert_eq!(data_around_comments(library, &comments).await, ["first", "last"], "{library:?}");
    }
}

/// Lets comments pass, and answers the data of all messages that the client shows.
async fn data_around_comments(library: Library, comments: &[(&str, &str)]) -> Vec<String> {
    let (broker, _network, mut client) = settled(library, comments).await;
    let mut other = Subscribe::to(&["a"]).connect(broker.addr).await;
    until("comments have passed", async || {
        let _ = other.next_within(std::time::Duration::from_millis(20)).await;
        (other.comments.len() > 2).then_some(())
    })
    .await;
    broker.http.publish("a", "last").await;
    let data = client.tells_message("last").await;
    client.close().await;
    data
}

/// `urllib3` and `requests` fill their buffer before they hand it on, unless the body comes in chunks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_wait_for_a_full_buffer_get_each_event_before_the_next_is_published() {
    let (broker, _network, mut client) = settled(Library::SseclientCareless, &[]).await;
    for number in 1..5 {
        let data = number.to_string();
        broker.http.publish("a", data.as_str()).await;
        client.tells_message(&data).await;
    }
}
