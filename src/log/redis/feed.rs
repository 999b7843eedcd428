//! Following: what `XREAD` on a feed, and on the channels it names, tells the tailer.
//!
//! Invariant: refs are answered without a hole. A hole can only come from trimming or from a loss of history;
//! both are looked for whenever they are possible: on every new connection, after every empty block, when a
//! full batch says that this node is behind, and when the feed moved on by more than half the time that refs
//! are kept at least.

use std::collections::HashMap;

use fred::clients::Client;
use fred::types::Value;

use super::connection::{BLOCK, Effect, Follower, call, call_blocking};
use super::entry::{decode_event, decode_ref, entry_id};
use super::keys::Keys;
use super::value::{Reply, unexpected};
use crate::event::Event;
use crate::id::{Partition, StreamId};
use crate::log::{LogError, Ref, Want};

/// Refs read at once.
const REFS_MAX: usize = 1_024;
/// Half of the 60 s for which the functions keep every ref.
const VERIFY_AFTER_MS: u64 = 30_000;
/// Events read in one command, by the bytes that their refs announce.
const NEWS_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Keys named in one command.
const NEWS_KEYS_MAX: usize = 256;

/// What following found, before anything is done about it.
#[derive(Debug)]
pub(super) enum Found {
    Refs(Vec<Ref>),
    Trimmed,
    RolledBack,
}

/// Waits up to [`BLOCK`] for refs after `watermark`. `floor` is the highest id that this node was told before, which
/// the history must hold too.
pub(super) async fn follow(
    follower: &Follower,
    keys: &Keys,
    partition: Partition,
    watermark: StreamId,
    floor: StreamId,
) -> Result<Found, LogError> {
    let feed = &keys.feed(partition);
    let client = follower.client();
    let block = BLOCK.as_millis().to_string();
    let after = watermark.to_string();
    let words = ["COUNT", &REFS_MAX.to_string(), "BLOCK", &block, "STREAMS", feed, &after].map(Value::from);
    let reply = call_blocking(client, "XREAD", words.to_vec()).await?;
    let entries = reply.elements().first().map_or(&[][..], |stream| match stream.elements() {
        [_, entries] => entries.elements(),
        _ => &[],
    });
    let refs: Vec<Ref> = entries.iter().filter_map(decode_ref).collect();
    if refs.len() != entries.len() {
        return Err(unexpected("XREAD of the feed", &reply));
    }
    let may_have_hole = refs
        .last()
        .is_none_or(|last| refs.len() == REFS_MAX || last.id.ms() > watermark.ms() + VERIFY_AFTER_MS);
    if may_have_hole || follower.is_unverified() {
        for known in [Some(watermark), (floor > watermark).then_some(floor)].into_iter().flatten() {
            if let Some(loss) = find_loss(client, keys, partition, known).await? {
                return Ok(loss);
            }
        }
        follower.verified();
    }
    Ok(Found::Refs(refs))
}

/// Whether refs after `known`, which this node has seen, may be missing, and why. An id that is gone but lies below
/// an epoch is no loss that nobody knows of: the refs that follow tell.
async fn find_loss(
    client: &Client,
    keys: &Keys,
    partition: Partition,
    known: StreamId,
) -> Result<Option<Found>, LogError> {
    let (feed, id) = (keys.feed(partition), known.to_string());
    let args = [feed.as_str(), &id, &id].map(Value::from).to_vec();
    if !call(client, Effect::Read, "XRANGE", args).await?.elements().is_empty() {
        return Ok(None);
    }
    let args = [feed.as_str(), "-", "+", "COUNT", "1"].map(Value::from).to_vec();
    let oldest = call(client, Effect::Read, "XRANGE", args).await?;
    let Some(first) = oldest.elements().first().and_then(entry_id) else {
        return Ok(Some(Found::RolledBack));
    };
    if first > known {
        return Ok(Some(Found::Trimmed));
    }
    let args = [keys.state(partition), "epoch".to_owned()].map(Value::from).to_vec();
    let epoch = call(client, Effect::Read, "HGET", args).await?.stream_id();
    Ok(epoch.is_none_or(|epoch| epoch <= known).then_some(Found::RolledBack))
}

/// Reads the events that refs announced; per want those after `after` up to `through`, in order.
pub(super) async fn read_new(
    client: &Client,
    wants: &[Want],
    key_of: impl Fn(&Want) -> String,
) -> Result<Vec<Vec<Event>>, LogError> {
    let mut open: Vec<Reading> = wants
        .iter()
        .map(|want| Reading {
            key: key_of(want),
            after: want.after,
            through: want.through,
            events: Vec::new(),
        })
        .collect();
    let mut todo: Vec<usize> = (0..wants.len()).collect();
    let mut keys_max = NEWS_KEYS_MAX;
    while !todo.is_empty() {
        let rest = todo.split_off(chunk_of(&todo, wants, keys_max));
        let count = todo.iter().map(|i| wants[*i].refs).max().unwrap_or(1).max(1);
        todo = match read_chunk(client, &mut open, &todo, count).await {
            Ok(unfinished) => unfinished,
            // One key that holds something else fails the command for all: find it.
            Err(LogError::Damaged(_)) if todo.len() > 1 => {
                keys_max = 1;
                todo
            }
            Err(LogError::Damaged(error)) => {
                tracing::error!(error, channel = %wants[todo[0]].channel, "a channel cannot be read; its events count as lost");
                Vec::new()
            }
            Err(error) => return Err(error),
        };
        todo.extend(rest);
    }
    Ok(open.into_iter().map(|reading| reading.events).collect())
}

/// One channel's progress.
struct Reading {
    key: String,
    after: StreamId,
    through: StreamId,
    events: Vec<Event>,
}

/// How many of the channels fit one command; at least one.
fn chunk_of(todo: &[usize], wants: &[Want], keys_max: usize) -> usize {
    let mut bytes = 0;
    let fits = todo.iter().take(keys_max).take_while(|i| {
        bytes += wants[**i].bytes;
        bytes <= NEWS_BYTES_MAX
    });
    fits.count().max(1)
}

/// Reads on in some channels and answers those that have not reached their last ref.
async fn read_chunk(
    client: &Client,
    open: &mut [Reading],
    todo: &[usize],
    count: usize,
) -> Result<Vec<usize>, LogError> {
    let mut args = ["COUNT", &count.to_string(), "STREAMS"].map(Value::from).to_vec();
    args.extend(todo.iter().map(|i| Value::from(open[*i].key.as_str())));
    args.extend(todo.iter().map(|i| Value::from(open[*i].after.to_string())));
    let reply = call(client, Effect::Read, "XREAD", args).await?;
    let by_key: HashMap<String, usize> = todo.iter().map(|i| (open[*i].key.clone(), *i)).collect();
    let mut unfinished = Vec::new();
    for stream in reply.elements() {
        let [key, entries] = stream.elements() else { return Err(unexpected("XREAD", &reply)) };
        let Some(&i) = key.text().and_then(|key| by_key.get(&*key)) else {
            return Err(unexpected("XREAD", &reply));
        };
        let (reading, entries) = (&mut open[i], entries.elements());
        reading.events.extend(entries.iter().filter_map(decode_event).filter(|e| e.id <= reading.through));
        // Foreign entries in between count too, so a full batch may end before the last ref.
        reading.after = entries.last().and_then(entry_id).unwrap_or(reading.through);
        if entries.len() == count && reading.after < reading.through {
            unfinished.push(i);
        }
    }
    Ok(unfinished)
}
