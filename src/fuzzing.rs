//! Entry points for fuzzing: everything that reads bytes of strangers, each with what must hold whatever they are.
//!
//! `make fuzz` drives them with a fuzzer (`fuzz/`), the tests below with random and with known bad texts. Built for
//! these two only.

use crate::auth::Caller;
use crate::channel::{Channel, NAME_BYTES_MAX, check_user};
use crate::cursor::{Cursor, Start};
use crate::event::Data;
use crate::fanout::Filters;
use crate::pattern::Pattern;

/// A cursor is read, or refused; what was read is written as it can be read again.
pub fn cursor(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    for partitions in [1, 3, 1_024] {
        if let Ok(Start::After(cursor)) = Start::parse(text, partitions) {
            let again = Cursor::parse(&cursor.to_string(), partitions);
            assert_eq!(again.as_ref(), Ok(&cursor), "{text:?}");
        }
    }
}

/// A name is a channel, or refused; a channel stands in lists and queries as it is, and matches itself and `*`. A user's
/// own channel can be stored.
pub fn channel(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(channel) = Channel::parse(text) {
        assert_eq!(channel.as_str(), text);
        assert!(!text.is_empty() && text.len() <= NAME_BYTES_MAX && !channel.is_system());
        assert!(!text.contains([',', ' ', '\r', '\n', '{', '}', '\0']), "{text:?}");
        assert!(Pattern::new("*").grants(text) && Pattern::new(text).matches(text));
    }
    assert_eq!(Channel::of_user(text).is_ok(), check_user(text).is_ok(), "{text:?}");
    // The text as a pattern, and as the id of a user in one.
    let _ = Pattern::new(text).matches("aaaaaaaaaaaaaaaaaaaa");
    let own = Pattern::of_subject("user.{sub}", Some(text)).expect("there is an id");
    assert!(own.matches(&format!("user.{text}")) && !own.matches(&format!("user.{text}x")), "{text:?}");
}

/// A filter and data, separated by the first NUL: one that is read judges any data, always alike.
pub fn filter(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (json, data) = text.split_once('\0').unwrap_or((text, "{\"a\":1}"));
    if let Ok(Some(filter)) = Filters::default().compile(json) {
        let data = Data::text(data);
        assert_eq!(filter.matches(&data), filter.matches(&data));
    }
}

/// A query string is read whatever it is, and numbers and switches in it are values or problems.
pub fn query(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    crate::http::read_any_query(text);
}

/// A line of NDJSON is an item within the limits, or a problem.
pub fn ndjson(bytes: &[u8]) {
    if let Some((channel, data_bytes)) = crate::http::read_any_item(bytes, &Caller::anybody(None)) {
        assert!(Channel::parse(&channel).is_ok(), "{channel:?}");
        assert!(data_bytes <= crate::http::ANY_ITEM_BYTES_MAX);
    }
}

/// A token, with any header and any claims, that no key of ours signed is never believed.
pub fn token(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    assert!(!crate::auth::believes_any(text), "{text:?}");
}

/// What a proxy says is read or passed over, and believed only where the proxy is trusted.
pub fn forwarded(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    crate::http::read_any_forwarded(text);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Entry = fn(&[u8]);

    /// Every entry, by the name of its target in `fuzz/`.
    const ENTRIES: [(&str, Entry); 7] = [
        ("cursor", cursor),
        ("channel", channel),
        ("filter", filter),
        ("query", query),
        ("ndjson", ndjson),
        ("token", token),
        ("forwarded", forwarded),
    ];

    /// Texts near those that mean something, and inputs that once were a problem.
    const KNOWN: &[&str] = &[
        "",
        "earliest",
        "00000000000000000000000000",
        "01J00000000000000000000000.01J00000000000000001000000",
        "1526919030474-55",
        "18446744073709551615-18446744073709551615",
        "7ZZZZZZZZZZZZZZZZZZZZZZZZZ",
        "$user:1",
        "a,b",
        "{sub}",
        "*{sub}*",
        "{\"a\":[1,\"x\",null]}\0{\"a\":1}",
        "[1]",
        "{\"a\":{}}",
        "channels=a,b&channel=%FF&rewind=101&envelope=2&filters=%7B",
        "{\"channel\":\"a\",\"data\":1}",
        "{\"channel\":\"a\",\"data\":null,\"exclude\":[\"x\"],\"retry\":4294967296}",
        "{\"channel\":\"a\",\"data\":\"\\ud800\"}",
        "eyJhbGciOiJub25lIn0.e30.",
        "eyJhbGciOiJIUzI1NiIsImNyaXQiOlsiYjY0Il0sImI2NCI6ZmFsc2V9.e30.AA",
        "eyJhbGciOiJIUzI1NiIsImtpZCI6Ii4uLy4uL2Rldi9udWxsIn0.e30.AA",
        "for=\"[::1]:4711\";proto=https, for=_x",
        "1.2.3.4:99999, [::1",
    ];

    /// Seen to fail with a signature that is not verified.
    #[test]
    fn known_texts_are_read_or_refused() {
        for (_, entry) in ENTRIES {
            for text in KNOWN {
                entry(text.as_bytes());
            }
        }
    }

    /// Seen to fail with an entry that has no target.
    #[test]
    fn every_entry_has_a_target_for_the_fuzzer() {
        let targets = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
        let mut found: Vec<String> = std::fs::read_dir(targets)
            .unwrap()
            .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
            .collect();
        let mut wanted: Vec<String> = ENTRIES.iter().map(|(name, _)| (*name).to_owned()).collect();
        found.sort();
        wanted.sort();
        assert_eq!(found, wanted);
    }

    /// What the fuzzer begins with. Seen to fail with a target that has nothing to begin with.
    #[test]
    fn every_target_begins_with_texts_that_mean_something() {
        let seeds = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
        for (name, entry) in ENTRIES {
            let texts: Vec<Vec<u8>> = std::fs::read_dir(seeds.join(name))
                .unwrap_or_else(|error| panic!("fuzz/seeds/{name}: {error}"))
                .map(|text| std::fs::read(text.unwrap().path()).unwrap())
                .collect();
            assert!(texts.len() > 2, "{name}");
            for text in &texts {
                entry(text);
            }
        }
        let targets = std::fs::read_dir(seeds).unwrap().count();
        assert_eq!(targets, ENTRIES.len(), "and what is no target has no texts");
    }

    fn near() -> impl Strategy<Value = Vec<u8>> {
        let mutated = (prop::sample::select(KNOWN), any::<prop::sample::Index>(), any::<u8>(), 0..3usize)
            .prop_map(|(text, at, byte, how)| {
                let mut bytes = text.as_bytes().to_vec();
                if bytes.is_empty() {
                    return bytes;
                }
                let at = at.index(bytes.len());
                match how {
                    0 => bytes[at] = byte,
                    1 => bytes.insert(at, byte),
                    _ => bytes.truncate(at),
                }
                bytes
            });
        prop_oneof![
            mutated,
            prop::collection::vec(any::<u8>(), 0..80),
            "[-a-zA-Z0-9_.,*{}$%&=\"\\[\\]:; ]{0,80}".prop_map(String::into_bytes),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]
        #[test]
        fn any_bytes_are_read_or_refused(bytes in near()) {
            for (_, entry) in ENTRIES {
                entry(&bytes);
            }
        }
    }
}
