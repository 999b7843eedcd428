//! The queue in front of a log that the test holds up.

use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use futures_util::FutureExt;
use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::*;
use crate::channel::Channel;
use crate::event::{Data, Draft, Event, EventType, SkipList};
use crate::fanout::{FanoutOptions, RingLimits};
use crate::id::StreamId;
use crate::log::retention::RetentionRules;
use crate::log::{ChannelInfo, ChannelList, Followed, ListQuery, Page, ReadQuery, Retention, Tail, Want};

const KEEP: Retention = Retention { max_length: None, max_age: None };

/// A log that takes one call per permit, and answers it as the test says.
#[derive(Default)]
struct HeldLog {
    permits: Mutex<usize>,
    let_go: Notify,
    failure: Mutex<Option<LogError>>,
    /// Data of every call, in order.
    calls: Mutex<Vec<Vec<String>>>,
    entered: AtomicUsize,
}

impl HeldLog {
    fn allow(&self, calls: usize) {
        *self.permits.lock() += calls;
        self.let_go.notify_waiters();
    }

    fn take_permit(&self) -> bool {
        let mut permits = self.permits.lock();
        let left = permits.checked_sub(1);
        *permits = left.unwrap_or_default();
        left.is_some()
    }

    fn appended(&self) -> Vec<String> {
        self.calls.lock().concat()
    }
}

#[async_trait]
impl Log for HeldLog {
    fn partitions(&self) -> u16 {
        1
    }

    async fn append(&self, _: Partition, requests: &[AppendRequest]) -> Result<Vec<Appended>, LogError> {
        self.entered.fetch_add(1, Ordering::SeqCst);
        loop {
            let changed = self.let_go.notified();
            if self.take_permit() {
                break;
            }
            changed.await;
        }
        if let Some(error) = self.failure.lock().take() {
            assert!(!matches!(error, LogError::Damaged(_)), "the test breaks the task");
            return Err(error);
        }
        let items = requests.iter().flat_map(|request| &request.items);
        self.calls.lock().push(items.map(|item| item.draft.data.as_str().to_owned()).collect());
        let receipt = |n: usize| Receipt { id: StreamId::new(1, n as u64).unwrap(), duplicate: false };
        Ok(requests.iter().map(|request| Ok((0..request.items.len()).map(receipt).collect())).collect())
    }

    async fn read(&self, _: &Channel, _: &ReadQuery) -> Result<Page, LogError> {
        unreachable!()
    }
    async fn follow(&self, _: Partition, _: StreamId) -> Result<Followed, LogError> {
        unreachable!()
    }
    async fn read_new(&self, _: Partition, _: &[Want]) -> Result<Vec<Vec<Event>>, LogError> {
        unreachable!()
    }
    async fn tail(&self, _: Partition) -> Result<Tail, LogError> {
        unreachable!()
    }
    async fn reset(&self, _: Partition, _: StreamId) -> Result<Tail, LogError> {
        unreachable!()
    }
    async fn purge(&self, _: &Channel, _: &Retention) -> Result<(), LogError> {
        unreachable!()
    }
    async fn adopt(&self, _: &Channel, _: &Retention) -> Result<u64, LogError> {
        unreachable!()
    }
    async fn info(&self, _: &Channel, _: &Retention) -> Result<Option<ChannelInfo>, LogError> {
        unreachable!()
    }
    async fn channels(&self, _: &ListQuery) -> Result<ChannelList, LogError> {
        unreachable!()
    }
    async fn ping(&self) -> Result<(), LogError> {
        Ok(())
    }
    async fn close(&self) {}
}

struct Setup {
    log: Arc<HeldLog>,
    publisher: Publisher,
    tracker: TaskTracker,
    stop: CancellationToken,
}

fn setup() -> Setup {
    let log = Arc::new(HeldLog::default());
    let options = FanoutOptions {
        ring: RingLimits { frames_max: 1, bytes_max: 1 },
        rings_bytes_max: 1,
        page_bytes_max: 1,
    };
    let tail = Tail { last: StreamId::ZERO, epoch: StreamId::ZERO };
    let port = Arc::clone(&log) as Arc<dyn Log>;
    let hub = Hub::new(Arc::clone(&port), &[tail], RetentionRules::new(Vec::new(), KEEP), options);
    let (tracker, stop) = (TaskTracker::new(), CancellationToken::new());
    let publisher = Publisher::start(&port, &hub, &tracker, &stop);
    Setup { log, publisher, tracker, stop }
}

fn request(data: &str) -> Vec<AppendItem> {
    let draft =
        Draft { kind: EventType::default(), data: Data::text(data), retry: None, skip: SkipList::default() };
    let channel = Channel::parse("a").unwrap();
    vec![AppendItem { channel, draft, retention: KEEP, idempotency: None }]
}

impl Setup {
    /// Publishes the first one and waits until the log holds it up.
    async fn hold_up(&self) -> impl Future<Output = Result<Vec<Published>, PublishError>> {
        let mut first = Box::pin(self.publisher.publish(request("first")));
        while self.log.entered.load(Ordering::SeqCst) == 0 {
            assert!(first.as_mut().now_or_never().is_none(), "the log holds it up");
            tokio::task::yield_now().await;
        }
        first
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_refuses_at_once_and_keeps_what_it_took() {
    for (data, fits) in [("x".to_owned(), QUEUE_REQUESTS_MAX), ("x".repeat(1 << 20), 31)] {
        let setup = setup();
        let first = setup.hold_up().await;
        let mut waiting: Vec<_> =
            (0..fits + 5).map(|_| Box::pin(setup.publisher.publish(request(&data)))).collect();
        let mut refused = 0;
        waiting.retain_mut(|publish| match publish.as_mut().now_or_never() {
            Some(Err(error @ PublishError::Overloaded)) => {
                assert_eq!(error.outcome(), Outcome::NotPublished);
                refused += 1;
                false
            }
            Some(other) => panic!("{other:?}"),
            None => true,
        });
        assert_eq!((waiting.len(), refused), (fits, 5), "bounded in requests and in bytes");
        setup.log.allow(usize::MAX / 2);
        assert!(first.await.is_ok());
        assert!(join_all(waiting).await.iter().all(Result::is_ok), "what was taken is published");
        assert_eq!(setup.log.appended().len(), fits + 1);
        assert!(setup.publisher.publish(request("room again")).await.is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn requests_go_in_the_order_in_which_they_came_and_share_calls() {
    let setup = setup();
    let first = setup.hold_up().await;
    let waiting: Vec<_> =
        (0..CALL_ITEMS_MAX + 10).map(|n| setup.publisher.publish(request(&n.to_string()))).collect();
    let all = join_all(waiting);
    let release = async {
        tokio::task::yield_now().await;
        setup.log.allow(usize::MAX / 2);
    };
    let (_, answers, ()) = tokio::join!(first, all, release);
    assert!(answers.iter().all(Result::is_ok));
    let expected: Vec<String> =
        std::iter::once("first".to_owned()).chain((0..CALL_ITEMS_MAX + 10).map(|n| n.to_string())).collect();
    assert_eq!(setup.log.appended(), expected);
    let sizes: Vec<usize> = setup.log.calls.lock().iter().map(Vec::len).collect();
    assert_eq!(sizes, [1, CALL_ITEMS_MAX, 10], "a call is bounded");
}

#[tokio::test(start_paused = true)]
async fn what_waited_too_long_never_reaches_the_log_and_what_did_is_unknown() {
    let setup = setup();
    let first = setup.hold_up().await;
    let second = setup.publisher.publish(request("second"));
    let (first, second) = tokio::join!(first, second);
    assert_eq!(first.unwrap_err().outcome(), Outcome::Unknown, "the log had it");
    let second = second.unwrap_err();
    assert!(matches!(second, PublishError::TimedOut), "{second:?}");
    assert_eq!(second.outcome(), Outcome::NotPublished);
    setup.log.allow(usize::MAX / 2);
    setup.publisher.publish(request("third")).await.unwrap();
    assert_eq!(setup.log.appended(), ["third"]);
}

#[tokio::test]
async fn a_failed_call_is_no_acknowledgement() {
    let setup = setup();
    for (error, outcome) in [
        (LogError::Unknown("the answer was lost".into()), Outcome::Unknown),
        (LogError::Unavailable("nobody is there".into()), Outcome::NotPublished),
        (LogError::Refused("OOM".into()), Outcome::NotPublished),
    ] {
        *setup.log.failure.lock() = Some(error);
        setup.log.allow(1);
        let error = setup.publisher.publish(request("x")).await.unwrap_err();
        assert_eq!(error.outcome(), outcome, "{error}");
        assert_eq!(setup.log.entered.swap(0, Ordering::SeqCst), 1, "nothing is sent twice");
    }
}

#[tokio::test(start_paused = true)]
async fn after_the_stop_what_waits_is_still_sent_and_nothing_more_is_taken() {
    let setup = setup();
    let first = setup.hold_up().await;
    let mut waiting: Vec<_> =
        ["second", "third"].map(|data| Box::pin(setup.publisher.publish(request(data)))).into();
    for publish in &mut waiting {
        assert!(publish.as_mut().now_or_never().is_none());
    }
    setup.stop.cancel();
    setup.tracker.close();
    setup.log.allow(usize::MAX / 2);
    assert!(first.await.is_ok());
    assert!(join_all(waiting).await.iter().all(Result::is_ok));
    setup.tracker.wait().await;
    assert_eq!(setup.log.appended(), ["first", "second", "third"]);
    let late = setup.publisher.publish(request("late")).await.unwrap_err();
    assert!(matches!(late, PublishError::Stopping), "{late:?}");
    assert_eq!(late.outcome(), Outcome::NotPublished);
}

#[tokio::test]
async fn a_task_that_panics_is_noticed_and_its_publisher_told_that_nothing_is_known() {
    let setup = setup();
    assert!(setup.publisher.ended().now_or_never().is_none());
    *setup.log.failure.lock() = Some(LogError::Damaged(String::new()));
    setup.log.allow(1);
    let answer = setup.publisher.publish(request("a")).await;
    assert_eq!(answer.map_err(|error| error.outcome()), Err(Outcome::Unknown));
    setup.publisher.ended().await;
}
