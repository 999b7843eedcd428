//! Writes a configuration down as TOML, each value with its source, so that it can be read and used again.

use std::fmt::Write;

use serde_json::{Map, Value};

use super::Config;

/// The configuration as TOML. Secrets print themselves redacted.
pub(super) fn to_toml(config: &Config) -> String {
    let mut out = String::new();
    if let Ok(Value::Object(sections)) = serde_json::to_value(config) {
        for (name, section) in &sections {
            if let Value::Object(keys) = section {
                table(&mut out, config, name, keys);
            }
        }
    }
    out
}

/// Tables within a table follow its keys: TOML would take later keys as theirs.
fn table(out: &mut String, config: &Config, path: &str, keys: &Map<String, Value>) {
    if !out.is_empty() {
        out.push('\n');
    }
    line(out, &format!("[{path}]"));
    for (key, value) in keys {
        let source = config.source_of(&format!("{path}.{key}"));
        match value {
            Value::Null => line(out, &format!("# {key} is not set")),
            Value::Object(_) => {}
            Value::Array(items) if items.iter().any(Value::is_object) => {}
            value => line(out, &format!("{key} = {}  # {source}", literal(value))),
        }
    }
    for (key, value) in keys {
        let path = format!("{path}.{key}");
        match value {
            Value::Object(keys) => table(out, config, &path, keys),
            Value::Array(items) => {
                for item in items.iter().filter_map(Value::as_object) {
                    line(out, &format!("\n[[{path}]]  # {}", config.source_of(&path)));
                    for (key, value) in item {
                        line(out, &format!("{key} = {}", literal(value)));
                    }
                }
            }
            _ => {}
        }
    }
}

fn line(out: &mut String, text: &str) {
    writeln!(out, "{text}").expect("writing to a String cannot fail");
}

/// JSON's scalars and lists of them are TOML's, but for one character that TOML wants escaped.
fn literal(value: &Value) -> String {
    value.to_string().replace('\u{7f}', "\\u007F")
}
