//! Listing channels: pages of a set that can only be scanned in stretches of about the size that is asked for.
//!
//! Invariants: a page has at most as many names as were asked for, and one at least where more can follow, unless
//! very many do not match; a channel that is there all the while is on one of the pages. A stretch that does
//! not fit the page is scanned again for the next one, past the last name that was answered. Where it then ends
//! elsewhere, because names have gone, it may hold some that were on no page: it begins anew, and names may come twice.

use fred::clients::Client;
use fred::types::Value;

use super::connection::Effect;
use super::functions::fcall;
use super::keys::Keys;
use super::value::{Reply, unexpected};
use crate::channel::Channel;
use crate::id::Partition;
use crate::log::{ChannelList, ListQuery, LogError};

/// Names looked at by one call, about. The same for every page: it decides what a stretch is.
const STRETCH: &str = "200";
/// Calls for one page.
const CALLS_MAX: usize = 50;

/// Where a page starts; written as `partition-stretch`, or `partition-stretch-end-name`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    partition: u16,
    /// What `SSCAN` answered, 0 at the beginning.
    stretch: u64,
    /// Where the stretch ended, and the name up to which its names are on a page before.
    after: Option<(u64, String)>,
}

impl Place {
    const BEGINNING: Self = Self { partition: 0, stretch: 0, after: None };

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(4, '-');
        let (partition, stretch) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let after = match parts.next() {
            None => None,
            Some(end) => Some((end.parse().ok()?, parts.next()?.to_owned())),
        };
        Some(Self { partition, stretch, after })
    }

    fn print(&self) -> String {
        let Self { partition, stretch, after } = self;
        match after {
            None => format!("{partition}-{stretch}"),
            Some((end, after)) => format!("{partition}-{stretch}-{end}-{after}"),
        }
    }
}

/// One page.
pub(super) async fn list(
    client: &Client,
    keys: &Keys,
    partitions: u16,
    query: &ListQuery,
) -> Result<ChannelList, LogError> {
    let start = query.cursor.as_ref().map_or(Some(Place::BEGINNING), |cursor| Place::parse(cursor));
    let mut place = start.filter(|place| place.partition < partitions).ok_or(LogError::BadCursor)?;
    let glob = escape_glob(&query.prefix) + "*";
    let mut names = Vec::new();
    for _ in 0..CALLS_MAX {
        let (mut found, next) = scan(client, keys, &place, &glob).await?;
        found
            .retain(|name| Channel::parse_stored(name).is_ok_and(|channel| query.visible.includes(&channel)));
        let room = query.limit.max(1) - names.len();
        let end = next.unwrap_or_default();
        let after = place.after.take().filter(|(before, _)| *before == end).map(|(_, after)| after);
        let mut rest = found.into_iter().skip_while(|name| after.as_ref().is_some_and(|after| name <= after));
        names.extend(rest.by_ref().take(room));
        if rest.next().is_some() {
            place.after = names.last().map(|last| (end, last.clone()));
            return Ok(page(&names, Some(&place)));
        }
        place = match next {
            Some(stretch) => Place { stretch, after: None, ..place },
            None if place.partition + 1 < partitions => {
                Place { partition: place.partition + 1, ..Place::BEGINNING }
            }
            None => return Ok(page(&names, None)),
        };
        if names.len() >= query.limit {
            break;
        }
    }
    Ok(page(&names, Some(&place)))
}

fn page(names: &[String], next: Option<&Place>) -> ChannelList {
    ChannelList {
        channels: names.iter().filter_map(|name| Channel::parse_stored(name).ok()).collect(),
        next: next.map(Place::print),
    }
}

/// The names of one stretch in order, and the stretch after it.
async fn scan(
    client: &Client,
    keys: &Keys,
    place: &Place,
    glob: &str,
) -> Result<(Vec<String>, Option<u64>), LogError> {
    let args = || [&*place.stretch.to_string(), glob, STRETCH].map(Value::from).to_vec();
    let feed = keys.feed(Partition(place.partition));
    let reply = fcall(client, Effect::Write, "headwater_channels_v1", &feed, args).await?;
    let [next, names] = reply.elements() else { return Err(unexpected("headwater_channels_v1", &reply)) };
    let mut names: Vec<String> =
        names.elements().iter().filter_map(Reply::text).map(std::borrow::Cow::into_owned).collect();
    // A scan may answer a name twice.
    names.sort_unstable();
    names.dedup();
    Ok((names, next.number().filter(|next| *next > 0)))
}

/// Takes the special meaning from the characters that Redis' glob matching gives one.
fn escape_glob(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '*' | '?' | '[' | ']' | '\\') {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_comes_back_as_it_was_printed_whatever_the_name() {
        for after in [None, Some("a"), Some("a-b-1"), Some("$user:1"), Some("-")] {
            let after = after.map(|name| (7, name.to_owned()));
            let place = Place { partition: 3, stretch: u64::MAX, after };
            assert_eq!(Place::parse(&place.print()), Some(place));
        }
        for text in ["", "1", "1-", "x-1", "1-x", "70000-0", "1-1-x", "1-1-1"] {
            assert_eq!(Place::parse(text), None, "{text:?}");
        }
    }
}
