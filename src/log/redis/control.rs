//! Control in Redis: revocations in a sorted set by their end, and a stream that tells every node about them.
//!
//! Invariants: the set is written before the stream, so whoever hears the doorbell, or reads the set after it, knows
//! the revocation. As long as the stream holds what a node has heard last, the set has lost nothing since; a node that
//! has fallen behind what the stream keeps finds in the set what was lifted, until that would have ended.

use async_trait::async_trait;
use fred::types::Value;

use super::RedisLog;
use super::connection::{BLOCK, Effect, call, call_blocking};
use super::value::{Reply, unexpected};
use crate::auth::revocation::{Revocation, Target, Until};
use crate::clock;
use crate::control::{Control, News, Snapshot};
use crate::id::StreamId;
use crate::log::LogError;

/// News kept for nodes that are slow; whoever falls behind further reads the set.
const NEWS_KEPT: &str = "10000";
/// News read at once.
const NEWS_MAX: usize = 1_024;
/// Sorted sets hold numbers exactly up to 2^53.
const UNTIL_MS_MAX: u64 = 1 << 53;

/// Keeps a revocation: key, target, end, now, `GT` where a later end stays. Answers the end. Scripts, because what the set
/// says of one target is one thing.
const KEEP: &str = "redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ARGV[3])
    redis.call('ZREM', KEYS[1], 'lifted:' .. ARGV[1])
    if ARGV[4] == 'GT' then
        redis.call('ZADD', KEYS[1], 'GT', ARGV[2], ARGV[1])
    else
        redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1])
    end
    return redis.call('ZSCORE', KEYS[1], ARGV[1])";

/// Lifts a revocation: key, target, now. That it was is known for as long as it would have lasted.
const LIFT: &str = "redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ARGV[2])
    local score = redis.call('ZSCORE', KEYS[1], ARGV[1])
    if score then
        redis.call('ZADD', KEYS[1], score, 'lifted:' .. ARGV[1])
        redis.call('ZREM', KEYS[1], ARGV[1])
    end";

/// Keeps a revocation that was lost, key, target, end, and answers whether it was not lifted.
const RESTORE: &str = "if redis.call('ZSCORE', KEYS[1], 'lifted:' .. ARGV[1]) then return 0 end
    redis.call('ZADD', KEYS[1], 'NX', ARGV[2], ARGV[1])
    return 1";

fn text(texts: &[&str]) -> Vec<Value> {
    texts.iter().map(|text| Value::from(*text)).collect()
}

#[async_trait]
impl Control for RedisLog {
    async fn revoke(&self, target: &Target, until: Until) -> Result<u64, LogError> {
        let (target, now_ms) = (target.to_string(), clock::unix_ms());
        let (until_ms, now) = (until.ms().min(UNTIL_MS_MAX), now_ms.to_string());
        let kept_until = if until_ms > now_ms {
            let which = if matches!(until, Until::AtLeast(_)) { "GT" } else { "" };
            let reply = self.change_set(KEEP, &[&target, &until_ms.to_string(), &now, which]).await?;
            let kept = reply.text().and_then(|score| score.parse().ok());
            kept.ok_or_else(|| unexpected("EVAL of a revocation", &reply))?
        } else {
            self.change_set(LIFT, &[&target, &now]).await?;
            until_ms
        };
        let told = self.tell(&target, &kept_until.to_string()).await;
        // The set has it: nodes that read it obey, those that only listen do not.
        told.map_err(|error| LogError::Unknown(format!("kept, but the nodes could not be told: {error}")))?;
        Ok(kept_until)
    }

    async fn restore(&self, revocation: &Revocation) -> Result<bool, LogError> {
        let target = revocation.target.to_string();
        let until = revocation.until_ms.min(UNTIL_MS_MAX).to_string();
        let reply = self.change_set(RESTORE, &[&target, &until]).await?;
        if reply.number() == Some(0) {
            return Ok(false);
        }
        self.tell(&target, &until).await?;
        Ok(true)
    }

    async fn read(&self, heard: StreamId) -> Result<Snapshot, LogError> {
        let client = self.connections.news();
        // The position first: what is written in between is heard once more.
        let newest = text(&[&self.keys.control(), "+", "-", "COUNT", "1"]);
        let newest = call(client, Effect::Read, "XREVRANGE", newest).await?;
        let position = newest.elements().first().and_then(|entry| entry.elements().first()?.stream_id());
        // Who has heard nothing cannot tell.
        let continues = heard != StreamId::ZERO && self.still_knows(heard).await?;
        let set = text(&[&self.keys.revocations(), "0", "-1", "WITHSCORES"]);
        let set = call(client, Effect::Read, "ZRANGE", set).await?;
        let revocation = |pair: &[Value]| {
            let target = pair[0].text()?.parse().ok()?;
            Some(Revocation { target, until_ms: pair[1].text()?.parse().ok()? })
        };
        Ok(Snapshot {
            revocations: set.elements().chunks_exact(2).filter_map(revocation).collect(),
            position: position.unwrap_or_default(),
            continues,
        })
    }

    async fn listen(&self, position: StreamId) -> Result<News, LogError> {
        let (block, count) = (BLOCK.as_millis().to_string(), NEWS_MAX.to_string());
        let key = self.keys.control();
        let args = ["COUNT", &count, "BLOCK", &block, "STREAMS", &key, &position.to_string()];
        let reply = call_blocking(self.connections.control(), "XREAD", text(&args)).await?;
        let entries = match reply.elements().first().map(Reply::elements) {
            None => &[][..],
            Some([_, entries]) => entries.elements(),
            Some(_) => return Err(unexpected("XREAD of the control stream", &reply)),
        };
        // Redis tells nobody that it has lost its data: whoever only waits, or hears what came after, would never know.
        let has_lost = position != StreamId::ZERO && !self.still_knows(position).await?;
        let has_hole = has_lost || entries.len() == NEWS_MAX;
        let mut news = News { position, has_hole, ..News::default() };
        for entry in entries {
            let [id, fields] = entry.elements() else {
                return Err(unexpected("XREAD of the control stream", &reply));
            };
            news.position = id.stream_id().unwrap_or(news.position);
            // Later versions may say more; what is not understood is passed over.
            let target = fields.field("revoke").and_then(Reply::text).and_then(|target| target.parse().ok());
            let until_ms = fields.field("until").and_then(Reply::number);
            if let (Some(target), Some(until_ms)) = (target, until_ms) {
                news.revocations.push(Revocation { target, until_ms });
            }
        }
        if has_hole {
            // What was heard before tells whether anything was lost.
            news.position = position;
        }
        Ok(news)
    }
}

impl RedisLog {
    /// Runs a script on the set.
    async fn change_set(&self, script: &str, args: &[&str]) -> Result<Value, LogError> {
        let set = self.keys.revocations();
        let args: Vec<&str> = [script, "1", &set].into_iter().chain(args.iter().copied()).collect();
        call(self.connections.news(), Effect::Write, "EVAL", text(&args)).await
    }

    /// Rings the doorbell of every node.
    async fn tell(&self, target: &str, until: &str) -> Result<(), LogError> {
        let entry = [&*self.keys.control(), "MAXLEN", "~", NEWS_KEPT, "*", "revoke", target, "until", until];
        call(self.connections.news(), Effect::Write, "XADD", text(&entry)).await.map(drop)
    }

    /// Whether the stream still holds what was heard last.
    async fn still_knows(&self, heard: StreamId) -> Result<bool, LogError> {
        let heard = heard.to_string();
        let found = text(&[&self.keys.control(), &heard, &heard]);
        let found = call(self.connections.news(), Effect::Read, "XRANGE", found).await?;
        Ok(!found.elements().is_empty())
    }
}
