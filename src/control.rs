//! Control: what one node does to all of them, beside publishing. So far that is revoking tokens.
//!
//! [`Control`] is the port; the stores keep what has to last and ring a doorbell, and one task a node listens.
//! Invariants: a revocation that was acknowledged is in the store, and every node that reaches the store obeys it
//! within a second; one that got halfway is completed as soon as the store answers; after every interruption a node
//! reads again all that is in force, and writes back what the store has lost and this node has not.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Mutex;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::auth::Access;
use crate::auth::revocation::{Revocation, Target, Until};
use crate::clock;
use crate::fanout::Hub;
use crate::id::StreamId;
use crate::log::LogError;
use crate::metrics::{Counter, Registry};
use crate::sse::ClosingReason;

/// Between two attempts to read from a store that is away.
const RETRY: Duration = Duration::from_millis(500);

/// Orders whose outcome is not known; with more, others are refused.
const UNSETTLED_MAX: usize = 1_024;

/// A store's side.
#[async_trait]
pub trait Control: Send + Sync + 'static {
    /// Keeps a revocation, or removes it where its end has passed, and tells every node. Answers when it ends.
    /// [`LogError::Unknown`] means that it may be kept without every node knowing.
    async fn revoke(&self, target: &Target, until: Until) -> Result<u64, LogError>;

    /// Keeps a revocation that was lost, unless the store holds one of the same target, and tells every node. Answers
    /// false where it was lifted rather than lost.
    async fn restore(&self, revocation: &Revocation) -> Result<bool, LogError>;

    /// All that is in force, and where news begin that are not in it. `heard` is the newest that a node has heard.
    async fn read(&self, heard: StreamId) -> Result<Snapshot, LogError>;

    /// Waits for news after `position`; may answer none. Errors mean that news may have been missed.
    /// A store that no longer knows `position` answers with a hole.
    async fn listen(&self, position: StreamId) -> Result<News, LogError>;
}

/// The revocations of a store.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Those in force, perhaps with some that have ended.
    pub revocations: Vec<Revocation>,
    /// The store's newest news.
    pub position: StreamId,
    /// The store still knows what the node has heard last, so it has lost nothing since: a revocation that is not
    /// here was lifted.
    pub continues: bool,
}

/// What was heard.
#[derive(Clone, Debug, Default)]
pub struct News {
    /// In order; one whose end has passed lifts an earlier one.
    pub revocations: Vec<Revocation>,
    /// Where to listen on.
    pub position: StreamId,
    /// Some may have been missed: everything has to be read again.
    pub has_hole: bool,
}

/// Applies what nodes are told.
pub struct Controller {
    store: Arc<dyn Control>,
    access: Arc<Access>,
    hub: Arc<Hub>,
    failures: Counter,
    /// One order after the other, and none while the store is read: what is acknowledged in between would be forgotten.
    orders: Mutex<Unsettled>,
}

/// Orders of which it is not known whether every node has heard; they are given again until that is.
type Unsettled = HashMap<Target, Until>;

impl Controller {
    /// For one node.
    pub fn new(store: Arc<dyn Control>, access: Arc<Access>, hub: Arc<Hub>) -> Self {
        Self { store, access, hub, failures: Counter::default(), orders: Mutex::default() }
    }

    /// Registers what is counted.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Times that news of revocations could not be read";
        registry.register("control_failures", help, self.failures.clone());
    }

    /// Revokes on every node; here at once.
    pub async fn revoke(&self, target: Target, until: Until) -> Result<Revocation, LogError> {
        let mut unsettled = self.orders.lock().await;
        if unsettled.len() >= UNSETTLED_MAX {
            return Err(LogError::Unavailable("earlier revocations have not been settled yet".to_owned()));
        }
        // What is ordered now counts, whatever became of what was; also when whoever ordered it leaves in the middle.
        unsettled.insert(target.clone(), until);
        let revoked = self.store.revoke(&target, until).await;
        if !matches!(revoked, Err(LogError::Unknown(_))) {
            unsettled.remove(&target);
        }
        let revocation = Revocation { target, until_ms: revoked? };
        self.apply(revocation.clone());
        Ok(revocation)
    }

    /// Gives orders again whose outcome is not known. Each may be repeated: it says how things are to be.
    async fn settle(&self) -> Result<(), LogError> {
        let mut unsettled = self.orders.lock().await;
        while let Some((target, until)) =
            unsettled.iter().next().map(|(target, until)| (target.clone(), *until))
        {
            let until_ms = self.store.revoke(&target, until).await?;
            unsettled.remove(&target);
            tracing::info!(target_of_revocation = %target, "every node has heard of a revocation that was in doubt");
            self.apply(Revocation { target, until_ms });
        }
        Ok(())
    }

    /// Reads what is in force. Call it before anybody is served.
    pub async fn begin(&self) -> Result<StreamId, LogError> {
        let snapshot = self.store.read(StreamId::ZERO).await?;
        self.access.revocations.replace(snapshot.revocations, clock::unix_ms());
        Ok(snapshot.position)
    }

    /// Listens until `ended`, from where [`Controller::begin`] left off.
    pub async fn run(self: Arc<Self>, position: StreamId, ended: CancellationToken) {
        ended.run_until_cancelled(self.follow(position)).await;
    }

    async fn follow(&self, mut position: StreamId) {
        let mut is_behind = false;
        loop {
            if is_behind {
                match self.catch_up(position).await {
                    Ok(newest) => position = newest,
                    Err(error) => {
                        self.failures.inc();
                        tracing::debug!(%error, "revocations cannot be read; those that are known count");
                        sleep(RETRY).await;
                        continue;
                    }
                }
            }
            match self.store.listen(position).await {
                Ok(news) => {
                    (position, is_behind) = (news.position, news.has_hole);
                    news.revocations.into_iter().for_each(|revocation| self.apply(revocation));
                    if let Err(error) = self.settle().await {
                        self.failures.inc();
                        tracing::debug!(%error, "a revocation is in doubt");
                        sleep(RETRY).await;
                    }
                }
                Err(error) => {
                    self.failures.inc();
                    tracing::debug!(%error, "news of revocations may be missed");
                    is_behind = true;
                    sleep(RETRY).await;
                }
            }
        }
    }

    /// After an interruption: takes what the store says, unless the store itself may have gone back.
    async fn catch_up(&self, position: StreamId) -> Result<StreamId, LogError> {
        let _no_order = self.orders.lock().await;
        let snapshot = self.store.read(position).await?;
        let now_ms = clock::unix_ms();
        let known = self.access.revocations.list(now_ms);
        let mut in_force = snapshot.revocations;
        if !snapshot.continues {
            let held: HashSet<Target> = in_force.iter().map(|held| held.target.clone()).collect();
            let mut restored = 0;
            for missing in known.iter().filter(|known| !held.contains(&known.target)) {
                if self.store.restore(missing).await? {
                    restored += 1;
                    in_force.push(missing.clone());
                }
            }
            if restored > 0 {
                tracing::warn!(
                    revocations = restored,
                    "the store had lost revocations; they were written again"
                );
            }
        }
        self.access.revocations.replace(in_force.clone(), now_ms);
        // Of those that were known no session is left.
        let known: HashSet<Target> = known.into_iter().map(|known| known.target).collect();
        in_force.retain(|revocation| !known.contains(&revocation.target));
        for revocation in in_force {
            self.apply(revocation);
        }
        Ok(snapshot.position)
    }

    /// From now on refuses matching tokens, and ends the sessions that were opened with one.
    fn apply(&self, revocation: Revocation) {
        let now_ms = clock::unix_ms();
        let target: Target = revocation.target.clone();
        let is_in_force = revocation.until_ms > now_ms;
        self.access.revocations.put(revocation, now_ms);
        if is_in_force {
            let ended = self.hub.close_of(|caller| target.matches(caller), ClosingReason::Revoked);
            if ended > 0 {
                tracing::info!(sessions = ended, "a revocation ended event streams");
            }
        }
    }
}
