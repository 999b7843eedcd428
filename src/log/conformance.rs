//! The conformance suite: what every log must do, run against each adapter.
//!
//! An adapter implements [`Harness`] for its tests and says `conformance::suite!(ItsHarness);`. That makes
//! every case below a test of its own, each on a fresh store. In ascending depth: `append`, `idempotency`,
//! `paging`, `fidelity`, `listing`, `feed`, `proof`.
//!
//! Invariant: no case knows which adapter it runs against. Time passes by [`Harness::advance`] only, and ages
//! are chosen so that a store with a real clock passes, too.

mod append;
mod feed;
mod fidelity;
mod idempotency;
mod listing;
mod paging;
mod proof;

pub(crate) use append::*;
pub(crate) use feed::*;
pub(crate) use fidelity::*;
pub(crate) use idempotency::*;
pub(crate) use listing::*;
pub(crate) use paging::*;
pub(crate) use proof::*;

use std::time::Duration;

use async_trait::async_trait;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::channel::Channel;
use crate::event::{Data, Draft, Event, EventType, SkipList};
use crate::id::{Partition, StreamId};
use crate::log::{
    AppendItem, AppendRequest, Appended, Followed, Idempotency, Log, Page, ReadQuery, Receipt, Ref, Retention,
};

/// One adapter on a store of its own.
#[async_trait]
pub(crate) trait Harness: Send + Sync + Sized {
    /// A fresh, empty store.
    async fn open() -> Self;

    /// The log on it.
    fn log(&self) -> &dyn Log;

    /// Lets time pass for the store: waits, or moves its clock.
    async fn advance(&self, by: Duration);

    /// Makes the store hold something for this channel that the adapter must refuse to append to.
    async fn spoil(&self, channel: &Channel);
}

/// Keeps everything.
pub(crate) const KEEP: Retention = Retention { max_length: None, max_age: None };

/// How long anything may take before a case fails.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Makes a test of every case.
macro_rules! suite {
    ($harness:ty) => {
        $crate::log::conformance::suite! { $harness =>
            ids_increase_across_concurrent_appenders
            order_is_kept_within_a_request_and_across_the_requests_of_a_call
            a_request_with_one_refused_item_leaves_nothing_behind
            purging_a_channel_mends_it
            an_acknowledged_event_is_read_at_once
            a_key_used_again_answers_the_first_id
            a_key_repeated_within_a_request_duplicates_its_first_item
            a_key_counts_until_its_window_ends
            keys_belong_to_their_channel
            keys_survive_a_purge
            a_refused_request_uses_up_no_key
            pages_of_any_size_cover_the_channel_in_both_directions
            after_and_before_are_exclusive
            a_page_ends_when_its_bytes_are_used_up_and_holds_at_least_one_event
            a_channel_without_events_reads_as_exhausted
            expired_events_are_never_returned
            a_long_channel_keeps_the_newest
            events_come_back_as_they_were_published
            any_text_comes_back
            a_large_event_comes_back
            system_channels_are_ordinary_channels
            channels_are_listed_by_prefix_and_in_pages
            names_that_are_not_for_everybody_stand_in_no_cursor
            names_that_go_between_pages_take_no_others_along
            purged_and_expired_channels_are_not_listed
            info_tells_length_first_and_last
            info_does_not_count_what_has_expired
            the_feed_names_every_event_once_in_order_from_any_watermark
            the_feed_names_events_appended_while_it_is_followed
            following_without_news_answers_nothing_after_a_while
            announced_events_are_read_exactly
            a_purge_is_announced_and_removes_what_was_announced
            the_tail_moves_with_appends_and_the_epoch_does_not
            a_watermark_from_the_future_is_a_rollback_and_a_reset_begins_anew
            a_proof_is_complete_only_where_nothing_is_missing
            a_channel_with_nothing_to_miss_is_not_flagged
            a_purge_resets_cursors_from_before
        }
    };
    ($harness:ty => $($case:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                use $crate::log::conformance::{self, Harness as _};
                let harness = <$harness>::open().await;
                conformance::$case(&harness).await;
                harness.log().close().await;
            }
        )*
    };
}
pub(crate) use suite;

pub(crate) fn channel(name: &str) -> Channel {
    Channel::parse_stored(name).unwrap()
}

/// `count` channels of one partition, so that one call can append to all of them.
pub(crate) fn neighbours(log: &dyn Log, prefix: &str, count: usize) -> Vec<Channel> {
    let partition = channel(prefix).partition(log.partitions());
    (0..)
        .map(|n| channel(&format!("{prefix}-{n}")))
        .filter(|name| name.partition(log.partitions()) == partition)
        .take(count)
        .collect()
}

pub(crate) fn partition_of(log: &dyn Log, channel: &Channel) -> Partition {
    channel.partition(log.partitions())
}

pub(crate) fn text(text: &str) -> Draft {
    Draft { kind: EventType::default(), data: Data::text(text), retry: None, skip: SkipList::default() }
}

pub(crate) fn item(channel: &Channel, data: &str) -> AppendItem {
    AppendItem { channel: channel.clone(), draft: text(data), retention: KEEP, idempotency: None }
}

pub(crate) fn keyed(channel: &Channel, data: &str, key: &str, window: Duration) -> AppendItem {
    let idempotency = Some(Idempotency { key: key.to_owned(), window });
    AppendItem { idempotency, ..item(channel, data) }
}

pub(crate) fn kept(item: AppendItem, retention: Retention) -> AppendItem {
    AppendItem { retention, ..item }
}

/// Text that no compression makes much shorter.
pub(crate) fn noise(len: usize) -> String {
    let mut rng = StdRng::seed_from_u64(len as u64);
    (0..len).map(|_| char::from(rng.random_range(b' '..=b'~'))).collect()
}

/// Appends requests to the partition of their first channel.
pub(crate) async fn append_all(log: &dyn Log, requests: Vec<Vec<AppendItem>>) -> Vec<Appended> {
    let partition = partition_of(log, &requests[0][0].channel);
    let requests: Vec<_> = requests.into_iter().map(|items| AppendRequest { items }).collect();
    let appended = log.append(partition, &requests).await.unwrap();
    assert_eq!(appended.len(), requests.len(), "one result per request");
    appended
}

/// Appends one request that must succeed.
pub(crate) async fn append(log: &dyn Log, items: Vec<AppendItem>) -> Vec<Receipt> {
    let count = items.len();
    let receipts = append_all(log, vec![items]).await.remove(0).unwrap();
    assert_eq!(receipts.len(), count, "one receipt per item");
    receipts
}

/// Appends one event that is no duplicate.
pub(crate) async fn append_text(log: &dyn Log, channel: &Channel, data: &str) -> StreamId {
    let receipts = append(log, vec![item(channel, data)]).await;
    assert!(!receipts[0].duplicate);
    receipts[0].id
}

pub(crate) fn everything() -> ReadQuery {
    ReadQuery {
        after: StreamId::ZERO,
        before: StreamId::MAX,
        ascending: true,
        count_max: 100_000,
        bytes_max: usize::MAX / 4,
        max_age: None,
    }
}

pub(crate) async fn read(log: &dyn Log, channel: &Channel, query: ReadQuery) -> Page {
    log.read(channel, &query).await.unwrap()
}

/// The texts of everything a channel holds, oldest first.
pub(crate) async fn texts(log: &dyn Log, channel: &Channel) -> Vec<String> {
    let page = read(log, channel, everything()).await;
    page.events.iter().map(|event| event.draft.data.as_str().to_owned()).collect()
}

pub(crate) fn ids(events: &[Event]) -> Vec<StreamId> {
    events.iter().map(|event| event.id).collect()
}

/// Follows the feed until it reaches `through`.
pub(crate) async fn follow_through(
    log: &dyn Log,
    partition: Partition,
    after: StreamId,
    through: StreamId,
) -> Vec<Ref> {
    let mut refs: Vec<Ref> = Vec::new();
    let following = async {
        while refs.last().map_or(after, |last| last.id) < through {
            let watermark = refs.last().map_or(after, |last| last.id);
            match log.follow(partition, watermark).await.unwrap() {
                Followed::Refs(found) => refs.extend(found),
                other => panic!("expected refs after {watermark}, got {other:?}"),
            }
        }
    };
    tokio::time::timeout(DEADLINE, following).await.expect("the feed names what was appended");
    refs
}

/// Asserts strict order.
pub(crate) fn assert_increasing(ids: &[StreamId]) {
    for pair in ids.windows(2) {
        assert!(pair[0] < pair[1], "{} is followed by {}", pair[0], pair[1]);
    }
}
