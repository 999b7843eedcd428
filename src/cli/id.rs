//! `headwater id`: translates an event id between what clients see and what Redis shows.

use std::io;

use anyhow::Context;
use clap::Args;
use headwater::id::{EventId, InvalidId, Partition, StreamId};

use super::{Failure, output};

/// Translate an event id: ULID, ms-seq, partition, time.
#[derive(Args)]
pub(crate) struct IdArgs {
    /// A ULID, `ms-seq` as redis-cli shows it, or a cursor of several ULIDs joined by dots
    id: String,
    /// The partition that a `ms-seq` belongs to
    #[arg(long, value_name = "N", default_value_t = 0)]
    partition: u16,
}

/// Prints every form of the id.
pub(super) fn run(arguments: &IdArgs) -> Result<(), Failure> {
    let text = translate(arguments)
        .with_context(|| format!("{:?} is no event id", arguments.id))
        .map_err(Failure::usage)?;
    output::line(&mut io::stdout(), &text)
}

fn translate(arguments: &IdArgs) -> Result<String, InvalidId> {
    let ids = match arguments.id.parse::<StreamId>() {
        Ok(id) => vec![id.at(Partition(arguments.partition))],
        Err(InvalidId::OutOfRange) => return Err(InvalidId::OutOfRange),
        Err(InvalidId::Malformed) => {
            arguments.id.split('.').map(str::parse::<EventId>).collect::<Result<Vec<_>, _>>()?
        }
    };
    Ok(ids.into_iter().map(describe).collect::<Vec<_>>().join("\n\n"))
}

fn describe(id: EventId) -> String {
    let (stream_id, partition) = (id.stream_id(), id.partition());
    let time = i64::try_from(stream_id.ms())
        .ok()
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
        .map_or_else(|| "after the year 9999".to_owned(), |time| format!("{time:.3}"));
    format!("id         {id}\nstream_id  {stream_id}\npartition  {partition}\ntime       {time}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translated(id: &str, partition: u16) -> Result<String, InvalidId> {
        translate(&IdArgs { id: id.to_owned(), partition })
    }

    #[test]
    fn both_forms_of_an_id_say_the_same() {
        let from_redis = translated("1526919030474-55", 3).unwrap();
        let ulid = from_redis.lines().next().unwrap().strip_prefix("id         ").unwrap();
        assert_eq!(translated(ulid, 0).unwrap(), from_redis);
        assert_eq!(translated(&ulid.to_lowercase(), 0).unwrap(), from_redis);
        assert!(
            from_redis
                .ends_with("stream_id  1526919030474-55\npartition  3\ntime       2018-05-21T16:10:30.474Z")
        );
        assert_eq!(
            translated(&format!("{ulid}.{ulid}"), 0).unwrap(),
            format!("{from_redis}\n\n{from_redis}")
        );
    }

    #[test]
    fn the_ends_of_time_are_told_and_nonsense_is_refused() {
        assert!(translated("0-0", 0).unwrap().ends_with("1970-01-01T00:00:00.000Z"));
        assert!(translated("281474976710655-0", 0).unwrap().ends_with("after the year 9999"));
        assert_eq!(translated("281474976710656-0", 0), Err(InvalidId::OutOfRange));
        for text in ["", "x", "01J.", "latest"] {
            assert_eq!(translated(text, 0), Err(InvalidId::Malformed), "{text:?}");
        }
    }
}
