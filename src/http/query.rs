//! Query strings: repeated parameters, as they were sent.
//!
//! Invariant: a value is what was sent, to the last character: bytes that are no UTF-8 are refused, because with
//! a replacement they would name something else. Only a cursor may be anything, as a bad one is no error.

use percent_encoding::percent_decode_str;

use super::problem::Problem;

/// Where a cursor may stand, weakest last.
pub(super) const CURSOR_PARAMETERS: [&str; 3] = ["last_event_id", "lastEventId", "lastEventID"];

/// The parameters of a request in their order.
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn parse(query: Option<&str>) -> Result<Self, Problem> {
        let mut parameters = Vec::new();
        for pair in query.unwrap_or_default().split('&') {
            let is_utf8 = percent_decode_str(pair).decode_utf8().is_ok();
            for (name, value) in form_urlencoded::parse(pair.as_bytes()).into_owned() {
                if !is_utf8 && !CURSOR_PARAMETERS.contains(&name.as_str()) {
                    return Err(Problem::query(&name, "not percent-encoded UTF-8"));
                }
                parameters.push((name, value));
            }
        }
        Ok(Self(parameters))
    }

    /// All values of a parameter.
    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The value of a parameter; the first one where it is repeated.
    pub(super) fn first(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The value of a parameter that stands there once at most.
    pub(super) fn single(&self, name: &str) -> Result<Option<&str>, Problem> {
        let mut values = self.0.iter().filter(|(known, _)| known == name).map(|(_, value)| value.as_str());
        match (values.next(), values.next()) {
            (value, None) => Ok(value),
            (_, Some(_)) => Err(Problem::query(name, "it stands there more than once; send one of them")),
        }
    }

    /// A whole number within bounds.
    pub(super) fn number(
        &self,
        name: &str,
        range: std::ops::RangeInclusive<u32>,
    ) -> Result<Option<u32>, Problem> {
        let Some(text) = self.single(name)? else { return Ok(None) };
        let expected =
            || format!("expected a whole number from {} to {}, not {text:?}", range.start(), range.end());
        match text.parse::<u32>() {
            Ok(number) if range.contains(&number) => Ok(Some(number)),
            _ => Err(Problem::query(name, expected())),
        }
    }

    /// A switch: `1` or `true`, `0` or `false`.
    pub(super) fn switch(&self, name: &str) -> Result<bool, Problem> {
        match self.single(name)? {
            None | Some("0" | "false") => Ok(false),
            Some("1" | "true") => Ok(true),
            Some(other) => Err(Problem::query(name, format!("expected 1 or 0, not {other:?}"))),
        }
    }
}
