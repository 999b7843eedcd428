//! Names of the keys, so that an operator can read them: see "Redis layout" in `migrations/README.md`.
//!
//! Invariant: all keys of a partition share the hash tag `{<partition>}`, or one function could not touch them.

use crate::channel::Channel;
use crate::id::Partition;

/// Builds key names from the configured prefix.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    prefix: String,
}

impl Keys {
    pub(super) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// Hash: layout version, partition count, creation time.
    pub(super) fn meta(&self) -> String {
        format!("{}:meta", self.prefix)
    }

    /// String: held while somebody changes the layout. Shares the slot of `meta`.
    pub(super) fn migration_lock(&self) -> String {
        format!("{{{}:meta}}:lock", self.prefix)
    }

    /// Stream: news for every node.
    pub(super) fn control(&self) -> String {
        format!("{}:ctl", self.prefix)
    }

    /// Sorted set: revocations by their end.
    pub(super) fn revocations(&self) -> String {
        format!("{}:revocations", self.prefix)
    }

    /// Stream: the partition's feed.
    pub(super) fn feed(&self, partition: Partition) -> String {
        format!("{}:{{{partition}}}:feed", self.prefix)
    }

    /// Hash: epoch, purge markers, partition count.
    pub(super) fn state(&self, partition: Partition) -> String {
        format!("{}:{{{partition}}}:state", self.prefix)
    }

    /// Hash: retention rules for programs that publish without a broker.
    pub(super) fn retention(&self, partition: Partition) -> String {
        format!("{}:{{{partition}}}:retention", self.prefix)
    }

    /// Stream: a channel's events.
    pub(super) fn channel(&self, partition: Partition, channel: &Channel) -> String {
        format!("{}:{{{partition}}}:ch:{channel}", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_documented_layout() {
        let keys = Keys::new("hw");
        let orders = Channel::parse("orders").unwrap();
        assert_eq!(keys.feed(Partition(0)), "hw:{0}:feed");
        assert_eq!(keys.channel(Partition(3), &orders), "hw:{3}:ch:orders");
        assert_eq!(keys.state(Partition(0)), "hw:{0}:state");
        assert_eq!(keys.retention(Partition(0)), "hw:{0}:retention");
        assert_eq!(keys.meta(), "hw:meta");
        assert_eq!((keys.control(), keys.revocations()), ("hw:ctl".to_owned(), "hw:revocations".to_owned()));
    }
}
