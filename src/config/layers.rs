//! Stacks the sources of configuration, one at a time.
//!
//! Invariant: the stack is a complete configuration after every layer, so an error belongs to the layer that
//! was laid last, which is how it can be named.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use figment::Figment;
use figment::error::Kind;
use figment::providers::{Format, Serialized, Toml};
use figment::value::{Dict, Value};

use super::{Config, ConfigError, ENVIRONMENT_PREFIX, Flag, NodeId};

/// The defaults, and the documentation of every key.
pub(super) const DEFAULTS: &str = include_str!("../../config/default.toml");

/// Separates section and key in the name of a variable.
const ENVIRONMENT_SEPARATOR: &str = "__";

/// Who set each key that was set.
pub(super) type Origins = BTreeMap<String, Source>;

/// Who set a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// `config/default.toml`.
    Default,
    /// Made up at start.
    Generated,
    /// A configuration file.
    File(PathBuf),
    /// A variable of this name.
    Environment(String),
    /// A command line flag.
    Flag(&'static str),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Generated => f.write_str("generated"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// The layers so far, and what they make together.
pub(super) struct Stack {
    figment: Figment,
    origins: Origins,
    config: Config,
}

impl Stack {
    /// The built-in defaults.
    pub(super) fn new(node_id: &NodeId) -> Self {
        let defaults: Dict = Toml::from_str(DEFAULTS).expect("a test reads the embedded file");
        let name = nested(["server", "node_id"], Value::from(node_id.as_str()));
        let figment =
            Figment::new().merge(Serialized::defaults(defaults)).merge(Serialized::defaults(name.clone()));
        let config = figment.extract().expect("a test reads the embedded file");
        let mut origins = Origins::new();
        record(&mut origins, &Source::Generated, &name, "");
        Self { figment, origins, config }
    }

    /// What the layers make together.
    pub(super) fn finish(self) -> Config {
        Config { origins: self.origins, ..self.config }
    }

    /// Lays a file's text on top.
    pub(super) fn push_file(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        let values = Toml::from_str::<Dict>(text).map_err(|e| {
            let before = e.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            // The parser's own rendering repeats the line, which may hold a secret.
            let line = 1 + before.matches('\n').count();
            ConfigError::Syntax { path: path.to_owned(), line, reason: e.message().to_owned() }
        })?;
        self.push(&Source::File(path.to_owned()), &values)
    }

    /// Lays every variable on top that names a key, in the order of names.
    pub(super) fn push_environment(&mut self, variables: &[(OsString, OsString)]) -> Result<(), ConfigError> {
        let mut ours: Vec<(&str, &OsString)> = variables
            .iter()
            .filter_map(|(name, value)| Some((name.to_str()?, value)))
            .filter(|(name, _)| {
                name.strip_prefix(ENVIRONMENT_PREFIX).is_some_and(|key| key.contains(ENVIRONMENT_SEPARATOR))
            })
            .collect();
        ours.sort_unstable();
        for (name, value) in ours {
            let value = value.to_str().ok_or_else(|| ConfigError::NotUtf8(name.to_owned()))?;
            self.push_variable(name, value)?;
        }
        Ok(())
    }

    /// A value is read as TOML first, and as plain text where that is none or does not fit the key: a password
    /// may consist of digits.
    fn push_variable(&mut self, name: &str, text: &str) -> Result<(), ConfigError> {
        let key = name[ENVIRONMENT_PREFIX.len()..].to_lowercase();
        let path: Vec<&str> = key.split(ENVIRONMENT_SEPARATOR).collect();
        let source = Source::Environment(name.to_owned());
        let plain = nested(path.iter().copied(), Value::from(text));
        let Some(value) = toml_value(text) else {
            return self.push(&source, &plain);
        };
        self.push(&source, &nested(path, value)).or_else(|e| self.push(&source, &plain).map_err(|_| e))
    }

    /// Lays a flag on top.
    pub(super) fn push_flag(&mut self, flag: &Flag) -> Result<(), ConfigError> {
        self.push(&Source::Flag(flag.name), &nested(flag.key.split('.'), Value::from(flag.value.as_str())))
    }

    fn push(&mut self, source: &Source, values: &Dict) -> Result<(), ConfigError> {
        let figment = self.figment.clone().merge(Serialized::defaults(values));
        self.config = figment.extract().map_err(|e| self.explain(source, e))?;
        self.figment = figment;
        record(&mut self.origins, source, values, "");
        Ok(())
    }

    fn explain(&self, source: &Source, error: figment::Error) -> ConfigError {
        let key = error.path.join(".");
        let invalid =
            |key: String, reason: String| ConfigError::Invalid { origin: source.clone(), key, reason };
        match error.kind {
            Kind::UnknownField(name, expected) => {
                let closest = self.closest_key(&key, &name, expected);
                ConfigError::UnknownKey { origin: source.clone(), key, closest }
            }
            Kind::MissingField(name) => {
                let reason = format!("the key {name} is missing");
                invalid(key, reason)
            }
            Kind::InvalidType(found, expected) if expected.contains("sequence") => {
                invalid(key, format!("expected a list, as in [\"a\", \"b\"], found {found}"))
            }
            Kind::InvalidType(found, expected) | Kind::InvalidValue(found, expected) => {
                invalid(key, format!("expected {expected}, found {found}"))
            }
            Kind::UnknownVariant(found, expected) => {
                let expected: Vec<String> = expected.iter().map(|word| format!("{word:?}")).collect();
                invalid(key, format!("expected {}, found {found:?}", expected.join(" or ")))
            }
            Kind::Message(reason) => invalid(key, reason),
            kind => invalid(key, kind.to_string()),
        }
    }

    /// The key that was probably meant: a similar name in the same table, else the same name in another section.
    fn closest_key(&self, key: &str, name: &str, siblings: &[&str]) -> Option<String> {
        let table = key.strip_suffix(name).unwrap_or_default();
        let by_distance = siblings.iter().map(|sibling| (distance(name, sibling), sibling)).min();
        if let Some((far, sibling)) = by_distance
            && far <= sibling.chars().count().div_ceil(3)
        {
            return Some(format!("{table}{sibling}"));
        }
        let sections = serde_json::to_value(&self.config).unwrap_or_default();
        let owner = sections.as_object()?.iter().find(|(_, keys)| keys.get(name).is_some());
        owner.map(|(section, _)| format!("{section}.{name}"))
    }
}

/// `text` as the right side of a TOML assignment, `None` when it is none.
fn toml_value(text: &str) -> Option<Value> {
    let mut parsed: Dict = Toml::from_str(&format!("value = {text}")).ok()?;
    let value = parsed.remove("value")?;
    parsed.is_empty().then_some(value)
}

fn nested<'a>(path: impl IntoIterator<Item = &'a str, IntoIter: DoubleEndedIterator>, value: Value) -> Dict {
    let wrap = |value, key: &str| Value::from(Dict::from([(key.to_owned(), value)]));
    let whole = path.into_iter().rev().fold(value, wrap);
    whole.into_dict().expect("the path has at least one part")
}

fn record(origins: &mut Origins, source: &Source, values: &Dict, table: &str) {
    for (key, value) in values {
        let path = format!("{table}{key}");
        match value.as_dict() {
            Some(dict) => record(origins, source, dict, &format!("{path}.")),
            None => {
                origins.insert(path, source.clone());
            }
        }
    }
}

/// Number of characters to insert, delete or replace (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_single_edits() {
        for (a, b, edits) in
            [("", "", 0), ("a", "", 1), ("", "ab", 2), ("kitten", "sitting", 3), ("url", "ulr", 2)]
        {
            assert_eq!((distance(a, b), distance(b, a)), (edits, edits), "{a} {b}");
        }
    }

    #[test]
    fn a_value_with_a_line_break_cannot_smuggle_in_a_second_key() {
        assert_eq!(toml_value("1\nother = 2"), None);
        assert_eq!(toml_value("1"), Some(Value::from(1)));
    }
}
