//! Rules of the code base that no lint knows: heads, sizes, who may name what, and words that must not stay.
//!
//! Invariant: every rule is a function from a file to complaints, and has an example that it catches. A complaint
//! names file, line, and what to do instead. Rules look at the tree as it lies there; version control plays no part.

use std::fs;
use std::path::{Path, PathBuf};

/// Longest file in lines, its unit tests not counted.
const FILE_LINES_MAX: usize = 600;

/// This file spells out what it forbids.
const THIS_FILE: &str = "tests/tidy.rs";

/// Files whose types are the domain: they know no wire format.
const DOMAIN: [&str; 7] = [
    "src/channel.rs",
    "src/cursor.rs",
    "src/event.rs",
    "src/id.rs",
    "src/log.rs",
    "src/log/bounds.rs",
    "src/log/retention.rs",
];

/// A dependency, and the only path prefix below `src` whose files may name it.
const OWNERS: [(&str, &str); 10] = [
    ("aws_lc_rs", "src/auth"),
    ("jsonwebtoken", "src/auth"),
    ("governor", "src/limits"),
    ("rustls", "src/http/tls"),
    ("tokio_rustls", "src/http/tls"),
    ("fred", "src/log/redis"),
    ("fjall", "src/log/embedded"),
    ("axum", "src/http"),
    ("hyper", "src/http"),
    ("hyper_util", "src/http"),
];

/// What must not stay in the code, and what to do instead.
const FORBIDDEN: [(&str, &str); 6] = [
    ("unbounded_channel", "give the queue a bound and a policy for when it is full"),
    ("todo!", "finish it or leave it out"),
    ("unimplemented!", "finish it or leave it out"),
    ("#[ignore", "a test runs always or does not exist"),
    ("TODO", "open an issue instead"),
    ("FIXME", "mend it"),
];

/// A source file below the root of the repository.
struct File {
    /// With `/`, relative to the root.
    path: String,
    text: String,
    /// Compiled for tests only: its `mod` line, or one above it, stands under `#[cfg(test)]`.
    test_only: bool,
}

impl File {
    /// Its lines before its unit tests, numbered from 1.
    fn product_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines: Vec<&str> = if self.test_only { vec![] } else { self.text.lines().collect() };
        let is_tests =
            |pair: &[&str]| pair[0] == "#[cfg(test)]" && pair[1].contains("mod ") && pair[1].ends_with('{');
        let end = lines.windows(2).position(is_tests).unwrap_or(lines.len());
        lines.into_iter().take(end).enumerate().map(|(index, line)| (index + 1, line))
    }

    /// The same without comments. What stands behind `//` within a string is lost, which no rule needs.
    fn code_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.product_lines().map(|(number, line)| (number, line.split("//").next().unwrap_or_default()))
    }

    /// Where the modules lie that it declares for tests only, without the ending.
    fn test_modules(&self) -> Vec<String> {
        let dir = self.path.strip_suffix("/lib.rs").or(self.path.strip_suffix("/main.rs"));
        let dir = dir.or(self.path.strip_suffix(".rs")).unwrap_or(&self.path);
        let lines: Vec<&str> = self.text.lines().collect();
        let under_test = lines.windows(2).filter(|pair| pair[0] == "#[cfg(test)]").map(|pair| pair[1]);
        let names =
            under_test.filter_map(|line| line.strip_suffix(';')?.split_once("mod ").map(|(_, name)| name));
        names.map(|name| format!("{dir}/{name}")).collect()
    }

    fn complain(&self, number: usize, what: impl std::fmt::Display) -> String {
        format!("{}:{number}: {what}", self.path)
    }

    fn is_product(&self) -> bool {
        self.path.starts_with("src/")
    }
}

fn head_rule(file: &File) -> Vec<String> {
    if file.text.starts_with("//!") {
        return vec![];
    }
    vec![file.complain(1, "begin with `//!`: what the file is, its invariant, its neighbours")]
}

fn size_rule(file: &File) -> Vec<String> {
    let lines =
        file.text.lines().take_while(|line| *line != "#[cfg(test)]" && *line != "mod tests {").count();
    if lines <= FILE_LINES_MAX {
        return vec![];
    }
    vec![
        file.complain(
            FILE_LINES_MAX,
            format!("{lines} lines before its tests; split it at {FILE_LINES_MAX}"),
        ),
    ]
}

fn unwrap_rule(file: &File) -> Vec<String> {
    let found = file.code_lines().filter(|(_, code)| file.is_product() && code.contains(".unwrap()"));
    found.map(|(n, _)| file.complain(n, "say why it cannot fail, with `expect`, or handle it")).collect()
}

fn owner_rule(file: &File) -> Vec<String> {
    let mut complaints = Vec::new();
    for (name, owner) in OWNERS {
        if !file.is_product() || file.path.starts_with(owner) {
            continue;
        }
        let found = file.code_lines().filter(|(_, code)| names_crate(code, name));
        complaints.extend(found.map(|(n, _)| file.complain(n, format!("only {owner}* may name {name}"))));
    }
    complaints
}

/// Whether the line has a path that begins with this crate.
fn names_crate(code: &str, name: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(name).any(|(at, _)| {
        let (before, after) = (&code[..at], &code[at + name.len()..]);
        let begins = !before.ends_with(is_word) && !before.ends_with("::") && !before.ends_with('.');
        let imported =
            before.trim() == "use" || before.trim() == "pub use" || before.trim() == "extern crate";
        begins && (after.starts_with("::") || (imported && !after.starts_with(is_word)))
    })
}

fn domain_rule(file: &File) -> Vec<String> {
    let applies = DOMAIN.contains(&file.path.as_str());
    let found = file.code_lines().filter(|(_, code)| {
        applies && (code.contains("Serialize") || code.contains("Deserialize") || code.contains("#[serde"))
    });
    found
        .map(|(n, _)| file.complain(n, "domain types derive no serde; wire types live at the edges"))
        .collect()
}

fn word_rule(file: &File) -> Vec<String> {
    let mut complaints = Vec::new();
    if file.path == THIS_FILE {
        return complaints;
    }
    for (index, line) in file.text.lines().enumerate() {
        for (word, instead) in FORBIDDEN {
            if line.contains(word) {
                complaints.push(file.complain(index + 1, format!("{word:?}: {instead}")));
            }
        }
    }
    complaints
}

fn sleep_rule(file: &File) -> Vec<String> {
    let mut complaints = Vec::new();
    if !file.path.starts_with("tests/") || file.path == THIS_FILE {
        return complaints;
    }
    for (index, line) in file.text.lines().enumerate() {
        if line.contains("sleep(Duration::from_") || line.contains("sleep(std::time::Duration::from_") {
            complaints.push(file.complain(index + 1, "wait for a condition with a deadline, not for luck"));
        }
    }
    complaints
}

/// Every key of a TOML file has a comment right above it or at its line's end.
fn documented_keys_rule(file: &File) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut above = "";
    let mut open_value = false;
    for (index, line) in file.text.lines().map(str::trim).enumerate() {
        let is_key = !open_value && !line.starts_with('#') && !line.starts_with('[') && line.contains('=');
        if is_key && !above.starts_with('#') && !line.contains(" # ") {
            let key = line.split('=').next().unwrap_or_default().trim();
            complaints.push(file.complain(index + 1, format!("say in a comment above {key:?} what it does")));
        }
        // A list over several lines is one key.
        open_value = (is_key && line.ends_with('[')) || (open_value && !line.starts_with(']'));
        above = line;
    }
    complaints
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> File {
    let relative = path.strip_prefix(root()).unwrap_or(path);
    let path_text = relative.to_string_lossy().replace('\\', "/");
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{path_text} is needed here: {error}"));
    File { path: path_text, text, test_only: false }
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries {
        let path = entry.expect("the directory can be read").path();
        if path.file_name().is_some_and(|name| name == "node_modules" || name == ".venv") {
            continue;
        }
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

fn sources() -> Vec<File> {
    let mut paths = Vec::new();
    for dir in ["src", "tests", "benches"] {
        collect(&root().join(dir), &mut paths);
    }
    paths.sort();
    let mut files: Vec<File> = paths.iter().map(|path| read(path)).collect();
    let for_tests: Vec<String> =
        files.iter().filter(|file| file.is_product()).flat_map(File::test_modules).collect();
    for file in &mut files {
        let below = |module: &String| {
            file.path.strip_prefix(module).is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
        };
        file.test_only = for_tests.iter().any(below);
    }
    assert!(files.iter().any(|file| file.path == "src/lib.rs"), "the sources were found");
    files
}

fn require_tidy(rule: fn(&File) -> Vec<String>) {
    let complaints: Vec<String> = sources().iter().flat_map(rule).collect();
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn every_file_says_at_its_head_what_it_is() {
    require_tidy(head_rule);
}

#[test]
fn no_file_outgrows_its_purpose() {
    require_tidy(size_rule);
}

#[test]
fn nothing_is_unwrapped_outside_tests() {
    require_tidy(unwrap_rule);
}

#[test]
fn each_dependency_is_named_only_where_it_belongs() {
    require_tidy(owner_rule);
}

#[test]
fn domain_types_know_no_wire_format() {
    require_tidy(domain_rule);
    for path in DOMAIN {
        assert!(root().join(path).exists(), "{path} has moved; move its name in this test too");
    }
}

#[test]
fn nothing_unfinished_or_unbounded_stays() {
    require_tidy(word_rule);
}

#[test]
fn tests_wait_for_conditions() {
    require_tidy(sleep_rule);
}

#[test]
fn every_configuration_key_is_documented() {
    let file = read(&root().join("config/default.toml"));
    assert!(file.text.contains("[sse]"), "the configuration is there");
    let complaints = documented_keys_rule(&file);
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn lock_files_name_no_registry() {
    let lock = read(&root().join("tests/clients/js/package-lock.json"));
    assert!(
        !lock.text.contains("\"resolved\""),
        "remove the `resolved` lines: `.npmrc` beside it keeps them out"
    );
    let pins = read(&root().join("tests/clients/python/requirements.txt"));
    assert!(!pins.text.contains("://"), "leave out where packages come from: `--no-emit-index-url`");
}

#[test]
fn tests_that_documents_name_exist() {
    let sources = sources();
    let mut named = 0;
    for path in ["docs/clients.md", "docs/proxies.md", "ARCHITECTURE.md"] {
        let document = read(&root().join(path));
        // A sentence with underscores, as tests are named, alone or behind its module.
        for name in document.text.split('`').map(|word| word.rsplit("::").next().unwrap_or(word)) {
            let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            if name.matches('_').count() >= 4 && name.chars().all(is_word) {
                named += 1;
                let function = format!("fn {name}(");
                let exists = sources.iter().any(|file| file.text.contains(&function));
                assert!(exists, "{path} names the test {name}, which does not exist");
            }
        }
    }
    assert!(named > 5, "names of tests were found");
}

#[test]
fn every_rule_catches_its_example() {
    let check = |rule: fn(&File) -> Vec<String>, path: &str, text: &str, expected: usize| {
        let complaints = rule(&File { path: path.into(), text: text.into(), test_only: false });
        assert_eq!(complaints.len(), expected, "{path} {text:?}: {complaints:?}");
    };
    check(head_rule, "src/a.rs", "use x;\n", 1);
    check(size_rule, "src/a.rs", &"\n".repeat(601), 1);
    check(size_rule, "src/a.rs", &("\n".repeat(600) + "#[cfg(test)]\nmod tests {\n}\n"), 0);
    check(unwrap_rule, "src/a.rs", "a.unwrap();\n#[cfg(test)]\nmod tests {\nb.unwrap();\n", 1);
    check(unwrap_rule, "src/a.rs", "#[cfg(test)]\nmod tests;\nb.unwrap();\n", 1);
    check(unwrap_rule, "tests/it/a.rs", "a.unwrap();\n", 0);
    check(unwrap_rule, "src/a.rs", "/// a.unwrap()\n", 0);
    let parent = "#[cfg(test)]\npub(crate) mod testing;\nmod tests;\n#[cfg(test)]\nmod tests {\n";
    let parent = File { path: "src/log/a.rs".into(), text: parent.into(), test_only: false };
    assert_eq!(parent.test_modules(), ["src/log/a/testing"]);
    check(owner_rule, "src/tailer.rs", "use fred::prelude::*;\n", 1);
    check(owner_rule, "src/tailer.rs", "fn f(e: fred::error::Error) {}\n", 1);
    check(owner_rule, "src/log/redis/a.rs", "use fred::prelude::*;\n", 0);
    check(owner_rule, "src/log/redis.rs", "use fred;\n", 0);
    check(owner_rule, "src/tailer.rs", "// as fred::x does\nlet alfred = alfred::new();\n", 0);
    check(owner_rule, "src/session.rs", "use axum::Router;\nuse hyper_util::rt;\n", 2);
    check(owner_rule, "src/session.rs", "use crate::axum::x;\n", 0);
    check(domain_rule, "src/id.rs", "#[derive(Clone, serde::Serialize)]\n", 1);
    check(domain_rule, "src/http/body.rs", "#[derive(Clone, serde::Serialize)]\n", 0);
    check(word_rule, "src/a.rs", "// TODO: later\n", 1);
    check(word_rule, "src/a.rs", "#[cfg(test)]\n#[ignore = \"slow\"]\n", 1);
    check(word_rule, "src/a.rs", "let (a, b) = mpsc::unbounded_channel();\n", 1);
    check(sleep_rule, "tests/it/a.rs", "sleep(Duration::from_secs(1)).await;\n", 1);
    check(documented_keys_rule, "a.toml", "# about a\n[x]\n# a\na = 1\nb = 2\n", 1);
    check(documented_keys_rule, "a.toml", "# a\na = [\n  \"x=y\",\n]\n# b\nb = 1\n", 0);
}
