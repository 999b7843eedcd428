//! Connections that are held for nothing, and attempts without a token, 2,000 a second: whoever is connected stays
//! connected and gets every event in order, at once and once, and whoever has a token gets in.
//!
//! What it costs them is printed and not asserted: the flood is made on the same machine, and the machine may have
//! other things to do. `make flood` runs it for 20 s against a release build and shows it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::interval;

use crate::support::tokens::{SECRET, admin_claims, token};
use crate::support::{Broker, Http, Store, Subscribe, until, within};

const SUBSCRIBERS: usize = 40;
/// How long the flood lasts unless `HEADWATER_FLOOD_SECONDS` says otherwise; the calm before it a quarter of that.
const FLOOD: Duration = Duration::from_secs(4);
/// Of each kind.
const ATTEMPTS_PER_SECOND: usize = 1_000;
const TICK: Duration = Duration::from_millis(10);
/// Of each kind; the flooder's own descriptors are bounded, too.
const HELD_MAX: u64 = 8_000;

/// Opens connections that send half a head and are held, and such that ask for a stream without a token.
async fn flood(addr: SocketAddr, held_max: usize, attempts: Arc<AtomicUsize>, refused: Arc<AtomicUsize>) {
    let mut held = VecDeque::new();
    let mut asking = JoinSet::new();
    let mut pace = interval(TICK);
    loop {
        pace.tick().await;
        for _ in 0..ATTEMPTS_PER_SECOND / 100 {
            // Nobody waits for the other: a flood has no manners.
            if let Ok(Ok(mut socket)) = tokio::time::timeout(TICK, TcpStream::connect(addr)).await {
                let _ =
                    socket.write_all(b"GET /events?channels=a HTTP/1.1\r\nHost: localhost\r\nX-Slow: ").await;
                held.push_back(socket);
                attempts.fetch_add(1, Ordering::Relaxed);
            }
            if held.len() > held_max {
                held.pop_front();
            }
            let (attempts, refused) = (Arc::clone(&attempts), Arc::clone(&refused));
            asking.spawn(async move {
                let Ok(mut socket) = TcpStream::connect(addr).await else { return };
                attempts.fetch_add(1, Ordering::Relaxed);
                let request = b"GET /events?channels=a HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer e30.e30.e30\r\n\r\n";
                let _ = socket.write_all(request).await;
                let mut status = [0; 12];
                if socket.read_exact(&mut status).await.is_ok() && status.ends_with(b"401") {
                    refused.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        while asking.len() > held_max {
            asking.join_next().await;
        }
        while asking.try_join_next().is_some() {}
    }
}

/// Publishes what time it is, and answers how long it took to each subscriber, sorted.
async fn measure(
    publisher: &Http,
    streams: &mut [crate::support::sse::SseReader],
    began: Instant,
    patience: Duration,
) -> Vec<Duration> {
    let mut latencies = Vec::new();
    let until = Instant::now() + patience;
    let mut pace = interval(Duration::from_millis(50));
    while Instant::now() < until {
        pace.tick().await;
        let sent = began.elapsed();
        let receipt = publisher.publish("a", u64::try_from(sent.as_micros()).unwrap()).await;
        let readings = streams.iter_mut().map(async |stream| {
            let event = stream.events(1).await.remove(0);
            let latency = began.elapsed().saturating_sub(sent);
            assert_eq!(event.last_event_id, receipt.id, "this event is the next one, whoever else comes");
            assert_eq!(event.data, sent.as_micros().to_string());
            latency
        });
        latencies.extend(futures_util::future::join_all(readings).await);
    }
    latencies.sort_unstable();
    latencies
}

fn p99(sorted: &[Duration]) -> Duration {
    sorted[sorted.len() * 99 / 100]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_connections_ends_no_stream_and_keeps_nobody_with_a_token_out() {
    let descriptors = rlimit::increase_nofile_limit(u64::MAX).expect("the limit of open files can be raised");
    let held_max = usize::try_from(HELD_MAX.min(descriptors / 4)).expect("it is small");
    let broker = Broker::on(Store::Redis).await.set("auth.jwt.secret", SECRET).start().await;
    let good = token(&admin_claims());
    let publisher = broker.http.bearing(&good);
    let mut streams = Vec::new();
    for _ in 0..SUBSCRIBERS {
        streams.push(Subscribe::to(&["a"]).bearing(&good).connect(broker.addr).await);
    }
    let given = std::env::var("HEADWATER_FLOOD_SECONDS").ok();
    let length = given.map_or(FLOOD, |text| Duration::from_secs(text.parse().expect("a number of seconds")));
    let began = Instant::now();
    let calm = measure(&publisher, &mut streams, began, length / 4).await;

    let (attempts, refused) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut flooding = JoinSet::new();
    flooding.spawn(flood(broker.addr, held_max, Arc::clone(&attempts), Arc::clone(&refused)));
    until("the flood has begun", async || (refused.load(Ordering::Relaxed) > 0).then_some(())).await;
    let half = measure(&publisher, &mut streams, began, length / 2).await;
    let newcomer =
        within("a newcomer gets in", Subscribe::to(&["a"]).bearing(&good).connect(broker.addr)).await;
    drop(newcomer);
    broker.http.get("/healthz").await.expect(200);
    let mut flooded = measure(&publisher, &mut streams, began, length / 2).await;
    flooding.abort_all();
    flooded.extend(half);
    flooded.sort_unstable();
    let calm_and_flooded = calm.len() + flooded.len();

    let events = publisher.history("a").await.len();
    assert_eq!(calm_and_flooded / SUBSCRIBERS, events, "what was delivered is what was published");
    let (attempts, refused) = (attempts.load(Ordering::Relaxed), refused.load(Ordering::Relaxed));
    assert!(refused > 100, "the attempts without a token were answered: {refused}");
    let ratio = p99(&flooded).as_secs_f64() / p99(&calm).as_secs_f64();
    eprintln!(
        "{attempts} attempts in {length:?}, {refused} refused; p50 {:?} -> {:?}, p99 {:?} -> {:?}, ratio {ratio:.1}",
        calm[calm.len() / 2],
        flooded[flooded.len() / 2],
        p99(&calm),
        p99(&flooded)
    );
}
