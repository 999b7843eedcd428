//! What the tests stand on: processes to start, a client to read with, a bad network, and a recorder that proves
//! what a client got.
//!
//! Invariant: nothing outlives its test. Brokers, Redis servers and proxies end when they are dropped, and a
//! broker that panicked, or that keeps something of clients that are gone, fails the test that started it.

pub(crate) mod broker;
pub(crate) mod client;
pub(crate) mod http;
pub(crate) mod http2;
pub(crate) mod load;
pub(crate) mod metrics;
pub(crate) mod peer;
pub(crate) mod proxy;
pub(crate) mod publishing;
pub(crate) mod recorder;
pub(crate) mod redis;
pub(crate) mod resp;
pub(crate) mod reverse_proxy;
pub(crate) mod scene;
pub(crate) mod sse;
pub(crate) mod sse_parser;
pub(crate) mod tokens;
pub(crate) mod until;

use rand::SeedableRng;
use rand::rngs::StdRng;

pub(crate) use broker::{Broker, Setup, Store, Streams};
pub(crate) use client::{Client, Library};
pub(crate) use http::Http;
pub(crate) use http2::Http2;
pub(crate) use load::{Fleet, Writers, read_log};
pub(crate) use metrics::Metrics;
pub(crate) use peer::Peer;
pub(crate) use proxy::{Mode, Proxy};
pub(crate) use publishing::Publishing;
pub(crate) use recorder::Ledger;
pub(crate) use redis::Redis;
pub(crate) use reverse_proxy::{ReverseProxy, recommended};
pub(crate) use sse::Subscribe;
pub(crate) use sse_parser::Event;
pub(crate) use until::{until, within};

/// Runs each of the named `async fn(Store)` as a test against the embedded log and against Redis.
macro_rules! both_stores {
    ($($test:ident),+ $(,)?) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test(crate::support::Store::Embedded).await;
            })+
        }
        mod redis {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test(crate::support::Store::Redis).await;
            })+
        }
    };
}

/// As `both_stores!`, for tests in which streams matter, `async fn(Setup)`: they run with streams that the HTTP
/// library carries too. Which store those stand on makes no difference to them.
macro_rules! both_paths {
    ($($test:ident),+ $(,)?) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test(crate::support::Store::Embedded.into()).await;
            })+
        }
        mod redis {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test(crate::support::Store::Redis.into()).await;
            })+
        }
        mod bodies {
            use crate::support::{Setup, Store, Streams};
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test(Setup { store: Store::Embedded, streams: Streams::Bodies }).await;
            })+
        }
    };
}

/// Runs each of the named `async fn(Streams)`, which choose their store themselves, over both paths.
macro_rules! both_streams {
    ($($test:ident),+ $(,)?) => {
        mod detached {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test(crate::support::Streams::Detached).await;
            })+
        }
        mod as_bodies {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test(crate::support::Streams::Bodies).await;
            })+
        }
    };
}

/// The cursor before every event, which is what `earliest` means.
pub(crate) const ZERO_CURSOR: &str = "00000000000000000000000000";

/// A random generator whose seed is printed, so that a failure can be replayed.
pub(crate) fn seeded() -> StdRng {
    let given = std::env::var("HEADWATER_TEST_SEED").ok();
    let seed = given.map_or_else(rand::random, |text| text.parse().expect("HEADWATER_TEST_SEED is a number"));
    eprintln!("replay with HEADWATER_TEST_SEED={seed}");
    StdRng::seed_from_u64(seed)
}
