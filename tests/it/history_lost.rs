//! History that Redis lost: subscribers are told, whoever publishes at that moment.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::redis::Redis;
use crate::support::resp::Resp;
use crate::support::{Broker, Subscribe, until};

const FEED: &str = "hw:{0}:feed";

/// Another program that publishes straight into Redis without a pause, also while Redis comes back.
struct BusyProgram {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl BusyProgram {
    fn start(port: u16) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let publish = move || {
            while !stopped.load(Ordering::Relaxed) {
                if std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
                    std::thread::yield_now();
                    continue;
                }
                let mut resp = Resp::connect(port);
                while !stopped.load(Ordering::Relaxed) {
                    resp.try_call(&["FCALL", "headwater_publish", "1", FEED, "busy", "tick", "x"]);
                }
            }
        };
        Self { stop, thread: Some(std::thread::spawn(publish)) }
    }
}

impl Drop for BusyProgram {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the busy program ended in good order");
        }
    }
}

/// Seen to fail when the watermark is verified after empty blocks only, and not on a new connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollback_is_told_although_others_publish_all_the_time() {
    let redis = Arc::new(Redis::start().await);
    let broker = Broker::on_redis(&redis).start().await;
    let mut reader = Subscribe::to(&["a"]).connect(broker.addr).await;
    broker.http.publish("a", "kept").await;
    redis.command(&["SAVE"]).await;
    let lost = broker.http.publish("a", "lost").await;
    assert_eq!(reader.data(2).await, ["kept", "lost"]);
    redis.kill9();
    let _busy = BusyProgram::start(redis.port());
    redis.restart().await;
    let gap = reader.gap().await;
    assert_eq!((gap["reason"].as_str(), gap["after"].as_str()), (Some("reset"), Some(lost.id.as_str())));
    let after = until("the node publishes again", async || {
        let answer = broker
            .http
            .try_send(reqwest::Method::POST, "/channels/a/events", &[("content-type", "text/plain")], "new")
            .await
            .ok()?;
        (answer.status == 201).then(|| answer.receipt())
    })
    .await;
    assert!(after.id > lost.id, "new ids exceed every id that was delivered");
    assert_eq!(reader.one().await, "new");

    let mut away = Subscribe::to(&["a"]).after(&lost.id).connect(broker.addr).await;
    assert_eq!(away.gap().await["reason"], "reset");
    broker.http.publish("a", "live").await;
    assert_eq!(away.one().await, "live", "after a reset it goes on from now");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_flush_the_layout_is_restored_and_subscribers_are_told() {
    let redis = Arc::new(Redis::start().await);
    let broker = Broker::on_redis(&redis).set("retention.max_length", "77").start().await;
    let mut reader = Subscribe::to(&["a"]).connect(broker.addr).await;
    broker.http.publish("a", "before").await;
    assert_eq!(reader.one().await, "before");
    redis.command(&["FLUSHALL"]).await;
    broker.http.publish("a", "right behind it").await;
    assert_eq!(reader.gap().await["reason"], "reset");
    assert_eq!(reader.one().await, "right behind it");
    until("the layout is whole again", async || {
        let layout = redis.command(&["HGET", "hw:meta", "layout"]).await;
        let rules = redis.command(&["HGET", "hw:{0}:retention", "*"]).await;
        let partitions = redis.command(&["HGET", "hw:{0}:state", "partitions"]).await;
        let texts = [layout, rules, partitions].map(|value| format!("{value:?}"));
        (texts[0].contains('1') && texts[1].contains("77") && texts[2].contains('1')).then_some(())
    })
    .await;
}

/// Seen to fail when the tailer gives up on the whole batch for one key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_holds_something_else_harms_only_its_own_channel() {
    let redis = Arc::new(Redis::start().await);
    let broker = Broker::on_redis(&redis).start().await;
    let mut good = Subscribe::to(&["good"]).connect(broker.addr).await;
    let mut both = Subscribe::to(&["good", "bad"]).connect(broker.addr).await;
    let mut bad = Subscribe::to(&["bad"]).connect(broker.addr).await;
    broker.http.publish("bad", "first").await;
    assert_eq!(bad.one().await, "first");
    redis.command(&["SET", "hw:{0}:ch:bad", "x"]).await;
    // A ref without its event, as if the key had been replaced right after a publish.
    redis.command(&["XADD", FEED, "*", "ch", "bad", "n", "5"]).await;
    broker.http.publish("good", "goes on").await;
    assert_eq!(good.one().await, "goes on");
    assert_eq!(bad.gap().await["reason"], "trimmed");
    assert_eq!(both.one().await, "first");
    assert_eq!(both.gap().await["channel"], "bad");
    assert_eq!(both.one().await, "goes on");
    broker.http.get("/channels/bad/events").await.problem(409);
    let mut earliest = Subscribe::to(&["good", "bad"]).after("earliest").connect(broker.addr).await;
    assert_eq!(earliest.one().await, "goes on");
}
