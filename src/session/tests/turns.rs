//! Many sessions behind their rings at once: they take turns, and nobody who is live waits for them.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use tokio_util::sync::CancellationToken;

use super::*;
use crate::session::driver::{Driver, Turn};

/// A turn's worth of what a driver has to say, if it has anything to say now.
fn poll(driver: &mut Pin<Box<Driver>>) -> Option<Vec<Block>> {
    let mut batch = Batch::default();
    let mut cx = Context::from_waker(Waker::noop());
    match driver.as_mut().poll_turn(&mut cx, &mut batch) {
        Poll::Ready(Turn::Write | Turn::WriteAndWait(_)) => Some(blocks(&batch.take().concat())),
        Poll::Ready(Turn::End) => panic!("nobody ends a stream here"),
        Poll::Pending => None,
    }
}

/// Seen to fail with a driver that asks for no turn, with one that asks for a live session, too, and with turns that
/// nobody makes room for.
#[tokio::test]
async fn sessions_that_are_behind_take_turns_and_a_live_one_waits_for_none() {
    let node = Node::new(4, Retention { max_length: None, max_age: None }).await;
    let first = node.publish("a", "0").await;
    for n in 1..400 {
        node.publish("a", &n.to_string()).await;
    }
    node.tail().await;
    let driver = |channel: &str, start| Box::pin(Driver::new(node.subscribe(&[channel], Ok(start)).session));
    let mut live = driver("b", Start::Latest);
    assert_eq!(poll(&mut live).unwrap()[0].event, "connected");

    node.subscribe(&["a"], Ok(after(first))).drain().await;
    // What they all need is in memory now, so each can begin; nothing of this node hands out turns yet.
    let mut behind: Vec<_> = (0..100).map(|_| driver("a", after(first))).collect();
    let mut seen: Vec<usize> = behind.iter_mut().map(|driver| poll(driver).unwrap().len() - 1).collect();
    assert!(behind.iter_mut().all(|driver| poll(driver).is_none()), "they wait for their turn");

    node.publish("b", "now").await;
    node.tail().await;
    assert_eq!(data(&poll(&mut live).unwrap()), ["now"]);

    let (stop, hub) = (CancellationToken::new(), Arc::clone(&node.hub));
    let all_of_them = async {
        for (driver, seen) in behind.iter_mut().zip(&mut seen) {
            while *seen < 399 {
                match poll(driver) {
                    Some(sent) => *seen += sent.len(),
                    None => tokio::task::yield_now().await,
                }
            }
        }
    };
    let served = tokio::time::timeout(DEADLINE, async {
        tokio::select! { () = all_of_them => {}, () = hub.take_turns(stop) => {} }
    });
    served.await.expect("everybody has their turn");
    assert_eq!(seen, [399; 100]);
}
