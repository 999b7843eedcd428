//! The clients that people use: each receives, comes back by itself and gets over all its connections exactly what
//! was published, in order, once.
//!
//! docs/clients.md says for each library what the program in tests/clients does with it, and why. Every client loses
//! its connection in every way that networks and brokers know, while events are published all the while. All were seen
//! to fail with a broker that prefers the cursor of the URL to the header's, with one that refuses with a status, and with
//! events without an `id:` line.

mod traps;

use crate::support::scene::{Harm, Scene, Side};
use crate::support::{Library, Store};

const HARMS: [Harm; 7] = [
    Harm::Cut(Side::Clients),
    Harm::CutWithinAnEvent(Side::Clients),
    Harm::Reset(Side::Clients),
    Harm::Refuse(Side::Clients),
    Harm::CutWithinAnEvent(Side::Clients),
    Harm::Overload,
    Harm::Restart,
];

/// The whole story of a client. On Redis it is told through the recommended proxies, see `proxies.rs`.
async fn misses_nothing(library: Library) {
    let mut scene = Scene::open(Store::Embedded, &[library], None).await;
    for harm in HARMS {
        scene.harm(harm).await;
    }
    scene.prove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_event_source_of_chromium_misses_nothing() {
    misses_nothing(Library::Chromium).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fetch_event_source_misses_nothing() {
    misses_nothing(Library::FetchEventSource).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn npm_eventsource_5_misses_nothing() {
    misses_nothing(Library::EventSource5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn npm_eventsource_3_misses_nothing() {
    misses_nothing(Library::EventSource3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn httpx_sse_misses_nothing() {
    misses_nothing(Library::HttpxSse).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sseclient_py_misses_nothing() {
    misses_nothing(Library::Sseclient).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_crate_eventsource_client_misses_nothing() {
    misses_nothing(Library::RustEventsourceClient).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_in_a_loop_misses_nothing() {
    misses_nothing(Library::Curl).await;
}
