//! `[limits]`: how many streams a node carries.

use std::io;

use serde::{Deserialize, Serialize};

use super::value;

/// The `[limits]` section. A key that is not set is no limit, except `connections_max`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Most event streams at once; `None` follows the file descriptors, see [`Limits::connections_max`].
    #[serde(default, deserialize_with = "value::optional_number::<_, usize, 1, 100_000_000>")]
    pub connections_max: Option<usize>,
    /// Most channels of one stream.
    #[serde(deserialize_with = "value::number::<_, usize, 1, 10_000>")]
    pub channels_per_connection: usize,
}

impl Limits {
    /// Most event streams at once for a process that may open `descriptors` files.
    pub fn connections_max(&self, descriptors: u64) -> usize {
        self.connections_max.unwrap_or_else(|| connections_for(descriptors))
    }
}

/// How many streams `descriptors` file descriptors carry: a tenth of them, at least 64 and at most 1,024, stay
/// free for publishers, the store, and the process itself.
pub fn connections_for(descriptors: u64) -> usize {
    let reserve = (descriptors / 10).clamp(64, 1_024);
    usize::try_from(descriptors.saturating_sub(reserve)).unwrap_or(usize::MAX).max(1)
}

/// Raises the soft limit of open files to the hard one, for the whole process, and answers the limit that
/// holds now.
///
/// # Errors
/// When the system refuses to tell or to raise the limit.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    rlimit::increase_nofile_limit(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_follow_the_descriptors_and_leave_a_reserve() {
        for (descriptors, connections) in
            [(0, 1), (64, 1), (100, 36), (1_024, 922), (20_000, 18_976), (1 << 30, (1 << 30) - 1_024)]
        {
            assert_eq!(connections_for(descriptors), connections, "{descriptors}");
        }
        assert!(connections_for(u64::MAX) > 1 << 40);
        let chosen = Limits { connections_max: Some(7), channels_per_connection: 1 };
        assert_eq!(chosen.connections_max(1_024), 7);
    }
}
