//! The wall clock, in one place. Ids come from the log's clock; this one only dates what people read.

use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since the Unix epoch.
pub fn unix_ms() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
}

/// Now as the `Date` header wants it (RFC 9110, section 5.6.7).
pub fn http_date() -> String {
    http_date_of(unix_ms())
}

fn http_date_of(unix_ms: u64) -> String {
    let instant = i64::try_from(unix_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    instant.unwrap_or_default().strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_reads_as_the_example_of_the_standard() {
        assert_eq!(http_date_of(784_111_777_900), "Sun, 06 Nov 1994 08:49:37 GMT");
    }
}
