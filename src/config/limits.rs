//! `[limits]`: how much a node carries, and how much of that one address or user may take.

use std::io;
use std::num::NonZeroU32;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::value;
use crate::limits::{LimitOptions, Rate};

/// Rates are written per one of these.
const PERIODS: [(&str, Duration); 3] =
    [("s", Duration::from_secs(1)), ("m", Duration::from_secs(60)), ("h", Duration::from_secs(3_600))];

/// The `[limits]` section. A key that is not set is no limit, except `connections_max`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Most event streams at once; `None` follows the file descriptors, see [`Limits::connections_max`].
    #[serde(default, deserialize_with = "value::optional_number::<_, usize, 1, 100_000_000>")]
    pub connections_max: Option<usize>,
    /// Most event streams from one address; IPv6 counts by /64.
    #[serde(default, deserialize_with = "value::optional_number::<_, usize, 1, 100_000_000>")]
    pub connections_per_ip: Option<usize>,
    /// Most event streams of one user.
    #[serde(default, deserialize_with = "value::optional_number::<_, usize, 1, 100_000_000>")]
    pub connections_per_user: Option<usize>,
    /// New event streams from one address.
    #[serde(default, deserialize_with = "rate", serialize_with = "print_rate")]
    pub connect_rate: Option<Rate>,
    /// Events from one user, API key, or address without either.
    #[serde(default, deserialize_with = "rate", serialize_with = "print_rate")]
    pub publish_rate: Option<Rate>,
    /// Most channels of one stream.
    #[serde(deserialize_with = "value::number::<_, usize, 1, 10_000>")]
    pub channels_per_connection: usize,
}

impl Limits {
    /// Most event streams at once for a process that may open `descriptors` files.
    pub fn connections_max(&self, descriptors: u64) -> usize {
        self.connections_max.unwrap_or_else(|| connections_for(descriptors))
    }

    /// The same as the node needs it.
    pub fn options(&self, descriptors: u64) -> LimitOptions {
        LimitOptions {
            connections_max: self.connections_max(descriptors),
            connections_per_ip: self.connections_per_ip,
            connections_per_user: self.connections_per_user,
            connect_rate: self.connect_rate,
            publish_rate: self.publish_rate,
        }
    }
}

fn parse_rate(text: &str) -> Result<Rate, String> {
    let found = text.split_once('/').and_then(|(count, period)| {
        let (_, per) = PERIODS.iter().find(|(name, _)| *name == period.trim())?;
        Some(Rate { count: count.trim().parse::<NonZeroU32>().ok()?, per: *per })
    });
    found.ok_or_else(|| format!("{text:?} is no rate, as in \"100/s\", \"600/m\" or \"1000/h\""))
}

fn rate<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Rate>, D::Error> {
    value::parsed(deserializer, parse_rate).map(Some)
}

#[expect(clippy::ref_option, reason = "serde hands over a reference to the field")]
fn print_rate<S: Serializer>(rate: &Option<Rate>, serializer: S) -> Result<S::Ok, S::Error> {
    let Some(Rate { count, per }) = rate else { return serializer.serialize_none() };
    let period = PERIODS.iter().find(|(_, known)| known == per).map_or("s", |(name, _)| name);
    serializer.collect_str(&format_args!("{count}/{period}"))
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
    }

    #[test]
    fn a_rate_is_a_number_per_second_minute_or_hour() {
        let count = |n| NonZeroU32::new(n).unwrap();
        assert_eq!(parse_rate("100/s"), Ok(Rate { count: count(100), per: Duration::from_secs(1) }));
        assert_eq!(parse_rate("600 / m"), Ok(Rate { count: count(600), per: Duration::from_secs(60) }));
        for text in ["", "100", "0/s", "-1/s", "1.5/s", "1/d", "/s", "5000000000/s"] {
            assert!(parse_rate(text).is_err(), "{text}");
        }
    }
}
