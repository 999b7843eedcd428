//! Load that is checked: writers that note every answer, and restless readers that lose their connection all the
//! time and note every event.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use reqwest::Method;
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::http::{Answer, Http, escape};
use super::recorder::{Ledger, Recorder, Stored};
use super::sse::Subscribe;
use super::until::{DEADLINE, Wait};

/// A channel of its own for the event after which a test has published nothing.
const FENCE: &str = "fence";

/// A restless reader loses its connection within this many bytes of the body, often before the first event.
const CUT_BYTES_MAX: usize = 6_000;

/// A node that is frozen answers nothing: how long a writer waits before it asks again.
const PATIENCE: Duration = Duration::from_secs(2);

/// Writers at work; they stop when this is dropped.
pub(crate) struct Writers {
    tasks: JoinSet<()>,
    stop: CancellationToken,
    ledger: Arc<Ledger>,
}

impl Writers {
    /// Starts `writers` that publish `events` each to random ones of `channels`, singly and in batches, taking turns
    /// between `nodes`. What got no answer is noted as doubtful and not tried again.
    pub(crate) fn start(
        nodes: &[SocketAddr],
        channels: &[&str],
        (writers, events): (usize, usize),
        rng: &mut StdRng,
    ) -> Self {
        let (ledger, mut tasks, stop) =
            (Arc::new(Ledger::default()), JoinSet::new(), CancellationToken::new());
        for writer in 0..writers {
            let node = Http::new(nodes[writer % nodes.len()]);
            let channels: Vec<String> = channels.iter().map(ToString::to_string).collect();
            let (rng, ledger) = (StdRng::seed_from_u64(rng.random()), ledger.clone());
            let writing = write(writer, node, channels, events, rng, ledger, stop.clone());
            tasks.spawn(writing);
        }
        Self { tasks, stop, ledger }
    }

    /// How many events were acknowledged so far.
    pub(crate) fn acknowledged(&self) -> usize {
        self.ledger.acknowledged()
    }

    /// What was acknowledged so far.
    pub(crate) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Ends them before they have done their work, each after the publish that is under way.
    pub(crate) async fn stop(self) -> Arc<Ledger> {
        self.stop.cancel();
        self.done().await
    }

    /// Waits until each has done its work; a writer that failed fails the test.
    pub(crate) async fn done(mut self) -> Arc<Ledger> {
        let all = async {
            while let Some(done) = self.tasks.join_next().await {
                done.expect("a writer does not fail");
            }
        };
        tokio::time::timeout(DEADLINE * 4, all).await.expect("the writers finish");
        self.ledger
    }
}

async fn write(
    writer: usize,
    node: Http,
    channels: Vec<String>,
    events: usize,
    mut rng: StdRng,
    ledger: Arc<Ledger>,
    stop: CancellationToken,
) {
    let mut number = 0;
    while number < events && !stop.is_cancelled() {
        let batch = if rng.random_bool(0.3) { rng.random_range(2..8) } else { 1 };
        let items: Vec<(String, String)> = (0..batch)
            .map(|item| {
                let channel = channels[rng.random_range(0..channels.len())].clone();
                let padding = "x".repeat(rng.random_range(0..300));
                let data = format!("{channel}/{writer}/{}/{padding}", number + item);
                (channel, data)
            })
            .collect();
        number += batch;
        note(publish(&node, &items).await, &items, &ledger);
        let wait = Wait::until("the broker and its store answer again");
        while !is_whole(&node).await {
            wait.again().await;
        }
    }
}

async fn is_whole(node: &Http) -> bool {
    let asked = tokio::time::timeout(PATIENCE, node.try_send(Method::GET, "/readyz?strict=1", &[], ""));
    matches!(asked.await, Ok(Ok(answer)) if answer.status == 200)
}

async fn publish(node: &Http, items: &[(String, String)]) -> Result<Answer, reqwest::Error> {
    let headers = [("content-type", "application/json")];
    let (path, body) = match items {
        [(channel, data)] => (format!("/channels/{}/events", escape(channel)), json!({ "data": data })),
        batch => {
            let item = |(channel, data): &(String, String)| json!({ "channel": channel, "data": data });
            ("/events".to_owned(), batch.iter().map(item).collect())
        }
    };
    node.try_send(Method::POST, &path, &headers, body.to_string()).await
}

/// Writes down what an answer, or its absence, says about each item.
fn note(answer: Result<Answer, reqwest::Error>, items: &[(String, String)], ledger: &Ledger) {
    let doubt = || items.iter().for_each(|(_, data)| ledger.doubt(data));
    let Ok(answer) = answer else { return doubt() };
    match (answer.status, items) {
        (201, [(_, data)]) => ledger.acknowledge(data, &answer.receipt().id),
        (200, items) => {
            let body = answer.json();
            let results = body["results"].as_array().expect("`results` is an array");
            assert_eq!(results.len(), items.len(), "{body}");
            for (result, (_, data)) in results.iter().zip(items) {
                ledger.acknowledge(data, result["id"].as_str().expect("results have ids"));
            }
        }
        (503, _) => match answer.clone().problem(503)["outcome"].as_str() {
            // Should it be in the log after all, the ledger finds it unexplained.
            Some("not_published") => {}
            Some("unknown" | "partial") => doubt(),
            _ => panic!("a 503 without an outcome: {answer:?}"),
        },
        _ => panic!("a publish was answered {answer:?}"),
    }
}

/// Readers that reconnect all the time, each from the cursor that it has, for random ones of the channels and to a
/// random node.
pub(crate) struct Fleet {
    tasks: JoinSet<Reader>,
    stop: CancellationToken,
}

struct Reader {
    recorder: Recorder,
    nodes: Vec<SocketAddr>,
    channels: Vec<String>,
    rng: StdRng,
}

impl Fleet {
    /// Starts `readers`. Their first cursor is `earliest`, or `cursor` for every other one.
    pub(crate) fn start(
        nodes: &[SocketAddr],
        channels: &[&str],
        readers: usize,
        cursor: &str,
        rng: &mut StdRng,
    ) -> Self {
        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
        for number in 0..readers {
            let from = if number % 2 == 0 { "earliest" } else { cursor };
            let mut reader = Reader {
                recorder: Recorder::new(format!("reader {number}"), from),
                nodes: nodes.to_vec(),
                channels: channels.iter().map(ToString::to_string).collect(),
                rng: StdRng::seed_from_u64(rng.random()),
            };
            let stop = stop.clone();
            tasks.spawn(async move {
                while !stop.is_cancelled() {
                    reader.one_connection().await;
                }
                reader
            });
        }
        Self { tasks, stop }
    }

    /// Lets each reader catch up with all that was published, and proves that it got exactly what the log holds, which
    /// is what the writers were told. Answers how many events were received in total.
    pub(crate) async fn prove(self, ledger: &Ledger, log: &[Stored], fence: &str) -> usize {
        ledger.check(&without_fences(log)).unwrap_or_else(|why| panic!("{why}"));
        let recorders = self.caught_up(fence).await;
        for recorder in &recorders {
            recorder.check(log, &[]).unwrap_or_else(|why| panic!("{why}"));
            assert_eq!(recorder.gaps(), [""; 0], "nothing was lost, so nothing may be called lost");
        }
        recorders.iter().map(Recorder::received).sum()
    }

    /// [`Fleet::prove`] where the store was made to lose history: `lost` are events that were acknowledged. Answers
    /// how many gaps were announced, each a reset.
    pub(crate) async fn prove_but_for(self, lost: &[Stored], log: &[Stored], fence: &str) -> usize {
        let recorders = self.caught_up(fence).await;
        for recorder in &recorders {
            recorder.check(log, lost).unwrap_or_else(|why| panic!("{why}"));
            recorder.was_told_of(lost).unwrap_or_else(|why| panic!("{why}"));
            assert!(recorder.gaps().iter().all(|reason| *reason == "reset"), "{:?}", recorder.gaps());
        }
        recorders.iter().map(|recorder| recorder.gaps().len()).sum()
    }

    async fn caught_up(mut self, fence: &str) -> Vec<Recorder> {
        self.stop.cancel();
        let mut recorders = Vec::new();
        while let Some(reader) = self.tasks.join_next().await {
            let mut reader = reader.expect("a reader does not fail");
            reader.catch_up(fence).await;
            recorders.push(reader.recorder);
        }
        recorders
    }
}

impl Reader {
    /// Connects and reads until the connection breaks: somewhere in the body, or after a moment of silence.
    async fn one_connection(&mut self) {
        let share = self.rng.random_range(0.2..1.0);
        let some: Vec<String> =
            self.channels.iter().filter(|_| self.rng.random_bool(share)).cloned().collect();
        let some: Vec<&str> = some.iter().map(String::as_str).collect();
        let node = self.nodes[self.rng.random_range(0..self.nodes.len())];
        let subscribe = Subscribe::to(&some)
            .after(self.recorder.cursor())
            .cut_at(self.rng.random_range(0..CUT_BYTES_MAX));
        let patience = Duration::from_millis(self.rng.random_range(20..200));
        let wait = Wait::until("a node takes the connection");
        let mut stream = loop {
            // A node that was killed answers nothing.
            match tokio::time::timeout(PATIENCE, subscribe.try_open(node)).await {
                Ok(Ok(stream)) if stream.status == 200 => break stream,
                _ => wait.again().await,
            }
        };
        self.recorder.connect(some.iter().copied());
        while let Some(event) = stream.next_within(patience).await {
            self.recorder.take(&event);
        }
        // An `id:` in a block without data moves a browser's cursor too.
        self.recorder.moved_to(stream.last_event_id());
    }

    /// Reads all channels on one connection up to the event `fence`.
    async fn catch_up(&mut self, fence: &str) {
        let mut all: Vec<&str> = self.channels.iter().map(String::as_str).collect();
        all.push(FENCE);
        let subscribe = Subscribe::to(&all).after(self.recorder.cursor());
        let mut stream = subscribe.open(self.nodes[0]).await;
        self.recorder.connect(all);
        let mut told = false;
        // A stream that starts behind the fence, since history was lost, says so next.
        while self.recorder.cursor() < fence || !told {
            let event = stream.next().await.expect("the stream goes on until the fence");
            told = event.kind != "connected";
            self.recorder.take(&event);
        }
    }
}

/// What the test itself wrote.
pub(crate) fn without_fences(log: &[Stored]) -> Vec<Stored> {
    log.iter().filter(|event| event.channel != FENCE).cloned().collect()
}

/// Publishes a last event, the fence, and answers everything that the log holds of `channels` up to it, in order
/// and the fence included, and the fence's id.
pub(crate) async fn read_log(node: SocketAddr, channels: &[&str]) -> (Vec<Stored>, String) {
    let fence =
        Http::new(node).publish_surely(FENCE, &format!("{FENCE} {}", rand::random::<u64>()), FENCE).await.id;
    let mut all = channels.to_vec();
    all.push(FENCE);
    let mut reader = Subscribe::to(&all).after("earliest").query("envelope", "1").connect(node).await;
    let mut log = Vec::new();
    loop {
        let event = reader.events(1).await.remove(0);
        log.push(Stored::from_envelope(&event));
        if event.last_event_id == fence {
            return (log, fence);
        }
    }
}
