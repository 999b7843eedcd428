//! A publisher that goes on all the while: numbered events of every shape, each acknowledged before the next.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::http::Http;
use super::recorder::Ledger;

/// Time between two events.
const PACE: Duration = Duration::from_millis(20);

/// The publisher at work; it stops when this is dropped.
pub(crate) struct Publishing {
    task: JoinSet<()>,
    stop: CancellationToken,
    ledger: Arc<Ledger>,
}

impl Publishing {
    /// Publishes to `channels` in turn, with keys, so that a broker that is away for a while only delays it.
    pub(crate) fn start(node: SocketAddr, channels: &[&str]) -> Self {
        let (ledger, stop, mut task) =
            (Arc::new(Ledger::default()), CancellationToken::new(), JoinSet::new());
        let channels: Vec<String> = channels.iter().map(ToString::to_string).collect();
        let (noted, stopped, node) = (ledger.clone(), stop.clone(), Http::new(node));
        task.spawn(async move {
            let mut number = 0;
            while !stopped.is_cancelled() {
                let data = shaped(number);
                let (channel, key) = (&channels[number % channels.len()], format!("news {number}"));
                let receipt = node.publish_surely(channel, &key, &data).await;
                noted.acknowledge(&data, &receipt.id);
                number += 1;
                tokio::time::sleep(PACE).await;
            }
        });
        Self { task, stop, ledger }
    }

    /// What was acknowledged so far; a test may note in it what it publishes itself.
    pub(crate) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Waits until the event that is under way is acknowledged, the last one.
    pub(crate) async fn stop(mut self) -> Arc<Ledger> {
        self.stop.cancel();
        while let Some(done) = self.task.join_next().await {
            done.expect("the publisher does not fail");
        }
        self.ledger
    }
}

/// Data that readers have stumbled over: several lines, line breaks that are none here, blanks, colons, much.
fn shaped(number: usize) -> String {
    match number % 6 {
        0 => format!("{number}"),
        1 => format!("{number}\nsecond line\n\nfourth: line"),
        2 => format!("{number} \u{2028}\u{2029}\u{85}é😀 ends\u{2028}"),
        3 => format!("  {number} blanks before and after  "),
        4 => format!(": {number} {{\"id\": \"x\\n\"}}\nid: 7\ndata: none"),
        _ => format!("{number} {}", "much ".repeat(600)),
    }
}
