//! Publishing: validated requests wait in a bounded queue and go to the log in batches.
//!
//! While a call is under way the next requests gather; with nothing to wait for, a request is sent at once.
//! Invariants: the queue is bounded in requests and bytes, and a full one refuses at once; requests of one
//! partition are appended in the order in which they were taken; an answer says what is known about the
//! outcome, and nothing is sent twice.

mod metrics;

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::metrics::PublishMetrics;
use crate::fanout::Hub;
use crate::id::{EventId, Partition};
use crate::log::{AppendItem, AppendRequest, Appended, Log, LogError, Outcome, Receipt, Refusal};

/// Requests that may wait per partition.
const QUEUE_REQUESTS_MAX: usize = 4_096;
/// Bytes that may wait per partition.
const QUEUE_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Items and bytes of one call to the log.
const CALL_ITEMS_MAX: usize = 1_000;
const CALL_BYTES_MAX: usize = 1024 * 1024;
/// What an item costs beside its data.
const ITEM_OVERHEAD_BYTES: usize = 256;
/// How long a publisher is kept waiting.
const DEADLINE: Duration = Duration::from_secs(10);

/// Takes requests for all partitions of a node.
pub struct Publisher {
    partitions: Vec<Queue>,
    hub: Arc<Hub>,
    metrics: PublishMetrics,
}

struct Queue {
    sender: mpsc::Sender<Waiting>,
    bytes: Arc<Semaphore>,
}

/// What a publisher waits for.
type Answer = oneshot::Receiver<Result<Vec<Receipt>, PublishError>>;

struct Waiting {
    request: AppendRequest,
    bytes: usize,
    deadline: Instant,
    answer: oneshot::Sender<Result<Vec<Receipt>, PublishError>>,
    permit: OwnedSemaphorePermit,
}

/// An event's public id, and whether its key had been used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// Of the new event, or of the first one under the key.
    pub id: EventId,
    /// Nothing was appended.
    pub duplicate: bool,
}

/// Why a request was not, or perhaps not, published.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PublishError {
    /// Too much is waiting already.
    #[error("too many events are waiting to be published; try again later")]
    Overloaded,
    /// The node is stopping.
    #[error("the node is stopping")]
    Stopping,
    /// The request waited too long before it was sent.
    #[error("the log did not take the event in time")]
    TimedOut,
    /// The log refused this request.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The log failed.
    #[error(transparent)]
    Log(#[from] LogError),
}

impl PublishError {
    /// What a publisher must assume.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Log(error) => error.outcome(),
            Self::Overloaded | Self::Stopping | Self::TimedOut | Self::Refused(_) => Outcome::NotPublished,
        }
    }
}

impl Publisher {
    /// Starts one task per partition on `tracker`. After `stop` what waits is still sent, nothing more is taken.
    pub fn start(
        log: &Arc<dyn Log>,
        hub: &Arc<Hub>,
        tracker: &TaskTracker,
        stop: &CancellationToken,
    ) -> Self {
        let metrics = PublishMetrics::default();
        let start_queue = |partition| {
            let (sender, receiver) = mpsc::channel(QUEUE_REQUESTS_MAX);
            let (log, metrics) = (Arc::clone(log), metrics.clone());
            let coalescer = Coalescer { partition, log, receiver, failing: false, metrics };
            tracker.spawn(coalescer.run(stop.clone()));
            Queue { sender, bytes: Arc::new(Semaphore::new(QUEUE_BYTES_MAX)) }
        };
        let partitions = (0..log.partitions()).map(Partition).map(start_queue).collect();
        Self { partitions, hub: Arc::clone(hub), metrics }
    }

    /// Comes back when a task that publishes has ended.
    pub fn ended(&self) -> impl Future<Output = ()> + Send + use<> {
        let senders: Vec<_> = self.partitions.iter().map(|queue| queue.sender.clone()).collect();
        async move {
            let mut closed: FuturesUnordered<_> = senders.iter().map(mpsc::Sender::closed).collect();
            closed.next().await;
        }
    }

    /// Publishes items of one partition, all or nothing, and waits for the log.
    ///
    /// # Panics
    /// When `items` is empty or spans several partitions.
    pub async fn publish(&self, items: Vec<AppendItem>) -> Result<Vec<Published>, PublishError> {
        let count = u16::try_from(self.partitions.len()).expect("a partition number has 16 bits");
        let partition = items.first().expect("a request has an item").channel.partition(count);
        assert!(
            items.iter().all(|item| item.channel.partition(count) == partition),
            "a request stays within one partition"
        );
        let receipts = self.append(partition, AppendRequest { items }).await?;
        if let Some(newest) = receipts.iter().map(|receipt| receipt.id).max() {
            self.hub.saw(partition, newest);
        }
        let published = |r: Receipt| Published { id: r.id.at(partition), duplicate: r.duplicate };
        Ok(receipts.into_iter().map(published).collect())
    }

    async fn append(
        &self,
        partition: Partition,
        request: AppendRequest,
    ) -> Result<Vec<Receipt>, PublishError> {
        let items = request.items.len();
        let answered = self.enqueue(partition, request);
        let answered = answered.inspect_err(|error| self.metrics.failed(items, error))?;
        // The coalescer answers everything it took; that it went away with the request is a lost answer.
        let lost = || PublishError::Log(LogError::Unknown("the publishing task ended".to_owned()));
        answered.await.unwrap_or_else(|_| Err(lost()))
    }

    /// Where the answer to the request will come.
    fn enqueue(&self, partition: Partition, request: AppendRequest) -> Result<Answer, PublishError> {
        let queue = &self.partitions[usize::from(partition.0)];
        let bytes = request_bytes(&request);
        let permits = u32::try_from(bytes.min(QUEUE_BYTES_MAX)).expect("the queue is smaller than 4 GiB");
        let permit =
            Arc::clone(&queue.bytes).try_acquire_many_owned(permits).map_err(|_| PublishError::Overloaded)?;
        let (answer, answered) = oneshot::channel();
        let deadline = Instant::now() + DEADLINE;
        let waiting = Waiting { request, bytes, deadline, answer, permit };
        queue.sender.try_send(waiting).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => PublishError::Overloaded,
            mpsc::error::TrySendError::Closed(_) => PublishError::Stopping,
        })?;
        Ok(answered)
    }
}

fn request_bytes(request: &AppendRequest) -> usize {
    request.items.iter().map(|item| item.draft.data.bytes().len() + ITEM_OVERHEAD_BYTES).sum()
}

/// Sends what waits for one partition.
struct Coalescer {
    partition: Partition,
    log: Arc<dyn Log>,
    receiver: mpsc::Receiver<Waiting>,
    /// The last call failed: told once, and so is the end of it.
    failing: bool,
    metrics: PublishMetrics,
}

impl Coalescer {
    async fn run(mut self, stop: CancellationToken) {
        loop {
            let first = tokio::select! {
                biased;
                first = self.receiver.recv() => first,
                () = stop.cancelled(), if !self.receiver.is_closed() => {
                    self.receiver.close();
                    continue;
                }
            };
            let Some(first) = first else { return };
            let batch = self.gather(first);
            self.send(batch).await;
        }
    }

    /// What waits now, up to the size of one call.
    fn gather(&mut self, first: Waiting) -> Vec<Waiting> {
        let mut items = first.request.items.len();
        let mut bytes = first.bytes;
        let mut batch = vec![first];
        while items < CALL_ITEMS_MAX && bytes < CALL_BYTES_MAX {
            let Ok(next) = self.receiver.try_recv() else { break };
            items += next.request.items.len();
            bytes += next.bytes;
            batch.push(next);
        }
        batch
    }

    async fn send(&mut self, batch: Vec<Waiting>) {
        let now = Instant::now();
        let (late, batch): (Vec<_>, Vec<_>) = batch.into_iter().partition(|waiting| waiting.deadline <= now);
        for waiting in late {
            self.metrics.failed(waiting.request.items.len(), &PublishError::TimedOut);
            let _ = waiting.answer.send(Err(PublishError::TimedOut));
        }
        let Some(deadline) = batch.iter().map(|waiting| waiting.deadline).max() else { return };
        let (requests, answers): (Vec<_>, Vec<_>) =
            batch.into_iter().map(|w| (w.request, (w.answer, w.permit))).unzip();
        let called = Instant::now();
        let append = self.log.append(self.partition, &requests);
        let result = match timeout_at(deadline, append).await {
            Ok(result) => result,
            Err(_) => Err(LogError::Unknown("no answer in time".to_owned())),
        };
        self.metrics.append_seconds.observe(called.elapsed().as_secs_f64());
        self.tell(&result);
        let results = match result {
            Ok(results) => results.into_iter().map(into_answer).collect(),
            Err(error) => vec![Err(PublishError::Log(error)); requests.len()],
        };
        for (request, result) in requests.iter().zip::<&Vec<_>>(&results) {
            self.metrics.answered(request.items.len(), result);
        }
        for ((answer, _permit), result) in answers.into_iter().zip(results) {
            // A publisher that went away does not need its answer.
            let _ = answer.send(result);
        }
    }
}

impl Coalescer {
    fn tell(&mut self, result: &Result<Vec<Appended>, LogError>) {
        match result {
            Ok(_) if self.failing => {
                tracing::info!(partition = self.partition.0, "events are published again");
            }
            Err(error) if !self.failing => {
                tracing::warn!(%error, partition = self.partition.0, "events cannot be published");
            }
            _ => {}
        }
        self.failing = result.is_err();
    }
}

fn into_answer(appended: Appended) -> Result<Vec<Receipt>, PublishError> {
    appended.map_err(PublishError::Refused)
}

#[cfg(test)]
mod tests;
