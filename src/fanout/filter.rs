//! Filters: which events a subscriber wants, by the top-level keys of their data.
//!
//! A key present in the data must equal the filter's value, or one of its values when that is a list; a key
//! absent from the data, and data that is no object, exclude nothing. Filters save bandwidth, they are no
//! access control. Invariant: equal filters are one [`Filter`] on a node, so that each event is judged once
//! per distinct filter.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::event::{Data, Format};

/// A compiled filter.
#[derive(Debug)]
pub struct Filter {
    /// Distinguishes filters in the memory of a frame.
    number: u64,
    keys: Vec<(String, Wanted)>,
}

#[derive(Debug)]
enum Wanted {
    Value(Value),
    OneOf(Vec<Value>),
}

/// Why a text is no filter.
#[derive(Debug, thiserror::Error)]
pub enum InvalidFilter {
    /// Not JSON.
    #[error("filters is no JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// JSON, but no object.
    #[error("filters is a JSON object, as in {{\"region\":[\"eu\",\"us\"]}}, not {0}")]
    NoObject(&'static str),
}

impl Filter {
    /// Distinguishes this filter from every other one that lived on this node.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Whether data passes.
    pub fn matches(&self, data: &Data) -> bool {
        #[derive(Deserialize)]
        struct TopLevel<'a>(#[serde(borrow)] HashMap<Cow<'a, str>, &'a RawValue>);
        if data.format() != Format::Json || !data.as_str().trim_start().starts_with('{') {
            return true;
        }
        // The mark of JSON is not proof, anybody may write to the store: what cannot be read is no object.
        let Ok(TopLevel(found)) = serde_json::from_str(data.as_str()) else { return true };
        self.keys
            .iter()
            .all(|(key, wanted)| found.get(key.as_str()).is_none_or(|value| wanted.accepts(value)))
    }
}

impl Wanted {
    fn accepts(&self, raw: &RawValue) -> bool {
        // What a `Value` cannot hold, such as 1e400, no filter can name.
        let Ok(value) = serde_json::from_str::<Value>(raw.get()) else { return false };
        match self {
            Self::Value(wanted) => equal(wanted, &value),
            Self::OneOf(wanted) => wanted.iter().any(|wanted| equal(wanted, &value)),
        }
    }
}

/// JSON equality in which 1 and 1.0 are the same number, and integers are compared to the last digit.
fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => {
            a == b || ((a.is_f64() || b.is_f64()) && a.as_f64() == b.as_f64())
        }
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| equal(a, b)))
        }
        (a, b) => a == b,
    }
}

/// The filters that sessions of this node use, by their meaning.
#[derive(Default)]
pub struct Filters {
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    by_meaning: HashMap<String, Weak<Filter>>,
    last_number: u64,
}

impl Filters {
    /// Compiles `json`; `None` for an empty filter, which excludes nothing.
    pub fn compile(&self, json: &str) -> Result<Option<Arc<Filter>>, InvalidFilter> {
        let object = match serde_json::from_str::<Value>(json)? {
            Value::Object(object) => object,
            Value::Array(_) => return Err(InvalidFilter::NoObject("a list")),
            Value::String(_) => return Err(InvalidFilter::NoObject("a string")),
            _ => return Err(InvalidFilter::NoObject("a number, true, false or null")),
        };
        if object.is_empty() {
            return Ok(None);
        }
        let object = sorted(object);
        let meaning = serde_json::to_string(&object).expect("a JSON value prints");
        let mut known = self.known.lock();
        if let Some(filter) = known.by_meaning.get(&meaning).and_then(Weak::upgrade) {
            return Ok(Some(filter));
        }
        known.by_meaning.retain(|_, filter| filter.strong_count() > 0);
        known.last_number += 1;
        let keys = object.into_iter().map(|(key, value)| match value {
            Value::Array(values) => (key, Wanted::OneOf(values)),
            value => (key, Wanted::Value(value)),
        });
        let filter = Arc::new(Filter { number: known.last_number, keys: keys.collect() });
        known.by_meaning.insert(meaning, Arc::downgrade(&filter));
        Ok(Some(filter))
    }

    /// Distinct filters that sessions use.
    pub fn in_use(&self) -> usize {
        self.known.lock().by_meaning.values().filter(|filter| filter.strong_count() > 0).count()
    }
}

fn sorted(object: Map<String, Value>) -> Map<String, Value> {
    let mut entries: Vec<_> = object.into_iter().collect();
    entries.sort_by(|(a, _), (b, _)| a.cmp(b));
    entries.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn passes(filter: &str, json: &str) -> bool {
        let data = Data::stored(Format::Json, Bytes::copy_from_slice(json.as_bytes()));
        Filters::default().compile(filter).unwrap().is_none_or(|filter| filter.matches(&data))
    }

    #[test]
    fn keys_that_are_present_must_match_and_absent_ones_do_not_exclude() {
        let filter = r#"{"net":["ci","ak"],"mag":1}"#;
        for json in [r#"{"net":"ci","mag":1.0}"#, r#"{"net":"ak"}"#, "{}", "[1]", "3", "null", r#"{"x":1}"#] {
            assert!(passes(filter, json), "{json}");
        }
        for json in [
            r#"{"net":"us"}"#,
            r#"{"net":"ci","mag":2}"#,
            r#"{"mag":"1"}"#,
            r#"{"net":["ci"]}"#,
            r#"{"net":null}"#,
            r#"{"mag":1e400}"#,
            r#"{"mag":"\ud800"}"#,
        ] {
            assert!(!passes(filter, json), "{json}");
        }
        assert!(passes(r#"{"a":{"b":1,"c":[2]}}"#, r#"{"a":{"c":[2.0],"b":1}}"#));
        assert!(!passes(r#"{"a":9007199254740993}"#, r#"{"a":9007199254740992}"#), "no integer is rounded");
        assert!(!passes(r#"{"a":1}"#, "\n {\"a\":2}"), "white space before an object does not hide it");
        assert!(!passes(r#"{"a":[]}"#, r#"{"a":1}"#), "an empty list accepts nothing");
        assert!(passes("{}", r#"{"a":1}"#));
        assert!(passes(filter, "{broken"), "what is marked as JSON and is none is no object");
    }

    #[test]
    fn malformed_filters_say_what_is_expected() {
        for (filter, part) in
            [("[1]", "not a list"), ("\"a\"", "not a string"), ("3", "not a number"), ("{", "no JSON")]
        {
            let error = Filters::default().compile(filter).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn filters_of_one_meaning_are_one_while_they_live() {
        let filters = Filters::default();
        let a = filters.compile(r#"{"a":1,"b":2}"#).unwrap().unwrap();
        let b = filters.compile(r#" {"b":2, "a":1}"#).unwrap().unwrap();
        assert!(Arc::ptr_eq(&a, &b));
        let number = a.number();
        drop((a, b));
        assert_ne!(filters.compile(r#"{"a":1,"b":2}"#).unwrap().unwrap().number(), number);
    }
}
