//! Control: what one node does to all of them, beside publishing. So far that is revoking tokens.
//!
//! [`Control`] is the port; the stores keep what has to last and ring a doorbell, and one task a node listens.
//! Invariants: a revocation that was acknowledged is in the store, and every node that reaches the store obeys it
//! within a second; after every interruption a node reads again all that is in force, and writes back what the
//! store has lost and this node has not.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::auth::Access;
use crate::auth::revocation::{Revocation, Target};
use crate::clock;
use crate::fanout::Hub;
use crate::id::StreamId;
use crate::log::LogError;
use crate::sse::ClosingReason;

/// Between two attempts to read from a store that is away.
const RETRY: Duration = Duration::from_millis(500);

/// A store's side.
#[async_trait]
pub trait Control: Send + Sync + 'static {
    /// Keeps a revocation, or removes it where its end has passed, and tells every node.
    async fn revoke(&self, revocation: &Revocation) -> Result<(), LogError>;

    /// Keeps a revocation unless the store holds one of the same target; nobody is told.
    async fn restore(&self, revocation: &Revocation) -> Result<(), LogError>;

    /// All that is in force, and where news begin that are not in it.
    async fn read(&self) -> Result<Snapshot, LogError>;

    /// Waits for news after `position`; may answer none. Errors mean that news may have been missed.
    async fn listen(&self, position: StreamId) -> Result<News, LogError>;
}

/// The revocations of a store.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Those in force, perhaps with some that have ended.
    pub revocations: Vec<Revocation>,
    /// The store's newest news.
    pub position: StreamId,
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
}

impl Controller {
    /// For one node.
    pub fn new(store: Arc<dyn Control>, access: Arc<Access>, hub: Arc<Hub>) -> Self {
        Self { store, access, hub }
    }

    /// Revokes on every node; here at once.
    pub async fn revoke(&self, revocation: Revocation) -> Result<(), LogError> {
        self.store.revoke(&revocation).await?;
        self.apply(revocation);
        Ok(())
    }

    /// Reads what is in force. Call it before anybody is served.
    pub async fn begin(&self) -> Result<StreamId, LogError> {
        let snapshot = self.store.read().await?;
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
                }
                Err(error) => {
                    tracing::debug!(%error, "news of revocations may be missed");
                    is_behind = true;
                    sleep(RETRY).await;
                }
            }
        }
    }

    /// After an interruption: takes what the store says, unless the store itself went back.
    async fn catch_up(&self, position: StreamId) -> Result<StreamId, LogError> {
        let snapshot = self.store.read().await?;
        let now_ms = clock::unix_ms();
        if snapshot.position < position {
            let lost: Vec<Revocation> = self
                .access
                .revocations
                .list(now_ms)
                .into_iter()
                .filter(|known| snapshot.revocations.iter().all(|held| held.target != known.target))
                .collect();
            if !lost.is_empty() {
                tracing::warn!(
                    revocations = lost.len(),
                    "the store has lost revocations; they are written again"
                );
            }
            for revocation in &lost {
                self.store.restore(revocation).await?;
            }
            snapshot.revocations.into_iter().chain(lost).for_each(|revocation| self.apply(revocation));
        } else {
            self.access.revocations.replace(snapshot.revocations.clone(), now_ms);
            snapshot.revocations.into_iter().for_each(|revocation| self.apply(revocation));
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
