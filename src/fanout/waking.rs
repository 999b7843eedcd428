//! Waking: the sessions of a topic that has something new, large topics a slice at a time.
//!
//! Whoever is woken has work to do: a write each. Ten thousand woken at once would all stand before whoever is
//! woken next, so a topic with many listeners is woken in slices that take turns with other topics, and with
//! everything else that the runtime has to do. Invariants: a session that listens when something is released is
//! woken after it, once or more; a topic waits in the queue once at most.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use slab::Slab;
use tokio::sync::Notify;
use tokio::task::yield_now;

use super::mailbox::Mailbox;
use super::topic::Topic;
use super::{give_back, slab_key};

/// Sessions that are woken together: some 150 us of writing. Fewer than the runtime runs between two looks at its
/// sockets (61), or whoever is woken by one would queue behind slice after slice; see `docs/performance.md`.
const SLICE: usize = 16;

/// Who listens to a topic.
#[derive(Default)]
pub(super) struct Listeners {
    mailboxes: Slab<Arc<Mailbox>>,
    /// Under way while the topic waits in the queue.
    round: Option<Round>,
}

/// One after another, all listeners are woken.
struct Round {
    /// The key that is due.
    next: u32,
    /// Something more was released since the round began.
    again: bool,
}

impl Listeners {
    pub(super) fn len(&self) -> usize {
        self.mailboxes.len()
    }

    pub(super) fn insert(&mut self, mailbox: Arc<Mailbox>) -> u32 {
        slab_key(self.mailboxes.insert(mailbox))
    }

    /// Answers whether nobody listens any more.
    pub(super) fn remove(&mut self, key: u32) -> bool {
        self.mailboxes.remove(key as usize);
        give_back(&mut self.mailboxes);
        self.mailboxes.is_empty()
    }

    /// Wakes a few listeners at once. For many it answers true: the topic has to be queued.
    #[must_use]
    pub(super) fn wake(&mut self) -> bool {
        if let Some(round) = &mut self.round {
            round.again = true;
            return false;
        }
        if self.mailboxes.len() > SLICE {
            self.round = Some(Round { next: 0, again: false });
            return true;
        }
        self.mailboxes.iter().for_each(|(_, mailbox)| mailbox.wake());
        false
    }

    /// Wakes the next slice; answers whether there is another.
    fn wake_slice(&mut self) -> bool {
        let Some(round) = &mut self.round else { return false };
        let (mut key, mut woken) = (round.next as usize, 0);
        while key < self.mailboxes.capacity() && woken < SLICE {
            if let Some(mailbox) = self.mailboxes.get(key) {
                mailbox.wake();
                woken += 1;
            }
            key += 1;
        }
        if key < self.mailboxes.capacity() {
            round.next = slab_key(key);
        } else if round.again {
            *round = Round { next: 0, again: false };
        } else {
            self.round = None;
        }
        self.round.is_some()
    }
}

/// Large topics that have something new, in turn.
#[derive(Default)]
pub(super) struct Turns {
    topics: Mutex<VecDeque<Arc<Topic>>>,
    more: Notify,
}

impl Turns {
    pub(super) fn push(&self, topic: Arc<Topic>) {
        self.topics.lock().push_back(topic);
        self.more.notify_one();
    }

    /// Wakes one slice after another, for ever.
    pub(super) async fn run(&self) {
        loop {
            let Some(topic) = self.pop() else {
                self.more.notified().await;
                continue;
            };
            if topic.wake_slice() {
                self.topics.lock().push_back(topic);
            }
            yield_now().await;
        }
    }

    fn pop(&self) -> Option<Arc<Topic>> {
        let mut topics = self.topics.lock();
        let topic = topics.pop_front();
        if topics.is_empty() {
            topics.shrink_to_fit();
        }
        topic
    }
}

impl Topic {
    fn wake_slice(&self) -> bool {
        self.listeners.lock().wake_slice()
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Wake, Waker};

    use super::*;
    use crate::channel::Channel;
    use crate::fanout::ring::Ring;
    use crate::id::{Partition, StreamId};
    use crate::log::Retention;

    /// Notes who is woken, by topic and number.
    #[derive(Clone, Default)]
    struct Record(Arc<Mutex<Vec<(char, usize)>>>);

    struct Listener {
        name: (char, usize),
        record: Record,
    }

    impl Wake for Listener {
        fn wake(self: Arc<Self>) {
            self.record.0.lock().push(self.name);
        }
    }

    impl Record {
        fn topic(&self, name: char, listeners: usize) -> (Arc<Topic>, Vec<Arc<Mailbox>>) {
            let channel = Channel::parse(&name.to_string()).unwrap();
            let ring = Ring::starting_at(StreamId::ZERO, Arc::default());
            let retention = Retention { max_length: None, max_age: None };
            let topic = Arc::new(Topic::new(channel, Partition(0), retention, ring));
            let mailboxes: Vec<_> = (0..listeners).map(|_| Arc::new(Mailbox::default())).collect();
            for mailbox in &mailboxes {
                topic.listen(Arc::clone(mailbox));
            }
            self.register(name, &mailboxes);
            (topic, mailboxes)
        }

        /// As sessions do before they look.
        fn register(&self, name: char, mailboxes: &[Arc<Mailbox>]) {
            for (number, mailbox) in mailboxes.iter().enumerate() {
                let listener = Listener { name: (name, number), record: self.clone() };
                mailbox.register(&Waker::from(Arc::new(listener)));
            }
        }

        fn take(&self) -> Vec<(char, usize)> {
            std::mem::take(&mut self.0.lock())
        }
    }

    fn release(turns: &Turns, topic: &Arc<Topic>) {
        if topic.wake() {
            turns.push(Arc::clone(topic));
        }
    }

    /// Lets the queue run until nothing waits in it.
    async fn run_out(turns: &Turns) {
        let until_empty = async {
            while !turns.topics.lock().is_empty() {
                yield_now().await;
            }
        };
        // In this order: what is popped is pushed back before the other looks.
        tokio::select! { biased; () = turns.run() => {}, () = until_empty => {} }
    }

    /// Seen to fail with all listeners woken at once.
    #[tokio::test]
    async fn a_large_topic_takes_turns_and_a_small_one_does_not_wait_at_all() {
        let (record, turns) = (Record::default(), Turns::default());
        let (large, _large) = record.topic('l', 1_000);
        let (other, _other) = record.topic('o', 100);
        let (small, _small) = record.topic('s', 1);
        release(&turns, &large);
        release(&turns, &other);
        release(&turns, &small);
        run_out(&turns).await;
        let order = record.take();
        assert_eq!(order.len(), 1_101, "each once");
        assert_eq!(order[0], ('s', 0));
        let last_of_other = order.iter().rposition(|(topic, _)| *topic == 'o').unwrap();
        assert!(last_of_other < 2 * 100 + 2 * SLICE, "{last_of_other}");
    }

    /// Seen to fail when a release during a round is taken for a part of it.
    #[tokio::test]
    async fn whoever_listens_is_woken_after_every_release_also_in_the_middle_of_a_round() {
        let (record, turns) = (Record::default(), Turns::default());
        let (topic, mailboxes) = record.topic('l', 3 * SLICE);
        release(&turns, &topic);
        assert!(topic.wake_slice(), "two more slices");
        assert_eq!(record.take().len(), SLICE);
        record.register('l', &mailboxes);
        release(&turns, &topic);
        assert_eq!(turns.topics.lock().len(), 1, "it waits once");
        run_out(&turns).await;
        let mut woken: Vec<_> = record.take();
        woken.sort_unstable();
        woken.dedup();
        assert_eq!(woken.len(), 3 * SLICE);
        for key in 0..2 * SLICE {
            topic.leave(u32::try_from(key).unwrap());
        }
        record.register('l', &mailboxes);
        release(&turns, &topic);
        assert_eq!(record.take().len(), SLICE, "few are woken at once, whatever their keys");
    }
}
