//! Migrations: bringing the layout in Redis up to this binary, under a lock, in numbered steps.
//!
//! Invariant: a binary older than the layout changes nothing and says why; every step may be repeated.
//! `migrations/README.md` tells how to add one.

use std::time::Duration;

use fred::clients::Client;
use fred::types::Value;
use ulid::Ulid;

use super::connection::{Effect, call};
use super::functions::{self, Change, fcall};
use super::keys::Keys;
use super::value::Reply;
use crate::id::{Partition, StreamId};
use crate::log::LogError;

/// The layout that this binary knows.
pub const LAYOUT: u64 = 1;

const LOCK_SECONDS: &str = "30";
const LOCK_RETRY: Duration = Duration::from_millis(200);
const LOCK_TRIES: u32 = 200;

/// What the store says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Meta {
    pub(super) layout: u64,
    pub(super) partitions: u16,
}

/// Reads the store's own description; `None` for a store that no broker has used.
pub(super) async fn read_meta(client: &Client, keys: &Keys) -> Result<Option<Meta>, LogError> {
    let args = vec![Value::from(keys.meta()), Value::from("layout"), Value::from("partitions")];
    let reply = call(client, Effect::Read, "HMGET", args).await?;
    let [layout, partitions] = reply.elements() else {
        return Err(super::value::unexpected("HMGET of the layout", &reply));
    };
    if layout.is_null() && partitions.is_null() {
        return Ok(None);
    }
    let partitions = partitions.number().and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0);
    match (layout.number(), partitions) {
        (Some(layout), Some(partitions)) => Ok(Some(Meta { layout, partitions })),
        _ => Err(LogError::Damaged(format!("{} holds no layout and partitions", keys.meta()))),
    }
}

/// What [`apply`] would do, in words; empty when the layout is up to date.
pub(super) async fn plan(client: &Client, keys: &Keys, partitions: u16) -> Result<Vec<String>, LogError> {
    let meta = read_meta(client, keys).await?;
    check_known(meta, partitions)?;
    let mut steps = Vec::new();
    for (library, change) in functions::plan(client, true).await? {
        let verb = if change == Change::Load { "load" } else { "replace" };
        steps.push(format!("{verb} the function library {}", library.name));
    }
    if meta.is_none() {
        steps.push(format!("create the feeds of {partitions} partition(s)"));
        steps.push(format!("write {}: layout {LAYOUT}, {partitions} partition(s)", keys.meta()));
    }
    Ok(steps)
}

/// Brings the layout up to this binary.
pub(super) async fn apply(client: &Client, keys: &Keys, partitions: u16) -> Result<(), LogError> {
    let lock = Lock::take(client, keys).await?;
    let done = apply_locked(client, keys, partitions).await;
    lock.release(client).await;
    done
}

async fn apply_locked(client: &Client, keys: &Keys, partitions: u16) -> Result<(), LogError> {
    let meta = read_meta(client, keys).await?;
    check_known(meta, partitions)?;
    functions::load_missing(client, true).await?;
    for partition in (0..partitions).map(Partition) {
        let fields = ["partitions".to_owned(), partitions.to_string()];
        let state = std::iter::once(keys.state(partition)).chain(fields).map(Value::from).collect();
        call(client, Effect::Write, "HSET", state).await?;
        let floor = || vec![Value::from(StreamId::ZERO.to_string())];
        fcall(client, Effect::Write, "headwater_tail_v1", &keys.feed(partition), floor).await?;
    }
    if meta.is_none() {
        let fields = [
            keys.meta(),
            "layout".to_owned(),
            LAYOUT.to_string(),
            "partitions".to_owned(),
            partitions.to_string(),
            "created_at".to_owned(),
            jiff::Timestamp::now().to_string(),
        ];
        call(client, Effect::Write, "HSET", fields.map(Value::from).to_vec()).await?;
    }
    Ok(())
}

fn check_known(meta: Option<Meta>, partitions: u16) -> Result<(), LogError> {
    match meta {
        Some(meta) if meta.layout > LAYOUT => Err(LogError::Refused(format!(
            "the store has layout {}, this binary knows layouts up to {LAYOUT}: start a newer release",
            meta.layout
        ))),
        Some(meta) if meta.partitions != partitions => Err(LogError::Refused(format!(
            "the store was created with {} partition(s), redis.partitions says {partitions}: the number is fixed \
             when the store is created, because ids contain it",
            meta.partitions
        ))),
        _ => Ok(()),
    }
}

/// Held by whoever changes the layout; ends by itself when the holder dies.
struct Lock {
    key: String,
    token: String,
}

impl Lock {
    async fn take(client: &Client, keys: &Keys) -> Result<Self, LogError> {
        let lock = Self { key: keys.migration_lock(), token: Ulid::from(rand::random::<u128>()).to_string() };
        for _ in 0..LOCK_TRIES {
            let args = [&lock.key, &lock.token, "NX", "EX", LOCK_SECONDS].map(Value::from).to_vec();
            if !call(client, Effect::Write, "SET", args).await?.is_null() {
                return Ok(lock);
            }
            tokio::time::sleep(LOCK_RETRY).await;
        }
        Err(LogError::Unavailable(format!("{} is held by another node", lock.key)))
    }

    async fn release(self, client: &Client) {
        let script = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end";
        let args = [script, "1", &self.key, &self.token].map(Value::from).to_vec();
        if let Err(error) = call(client, Effect::Write, "EVAL", args).await {
            tracing::warn!(%error, key = self.key, "the migration lock stays until it expires");
        }
    }
}
