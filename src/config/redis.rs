//! `[redis]`: which Redis holds the channels, and how they are laid out there.
//!
//! Invariant: after loading, at most one of the URL, `password` and `password_file` gave a password, and no
//! printed form of the section shows it.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::InvalidKey;
use super::value::{self, Secret};

/// Longest prefix of keys in bytes.
const PREFIX_BYTES_MAX: usize = 64;

/// The `[redis]` section. Without a `url` the embedded log serves.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Redis {
    /// Where Redis is.
    pub url: Option<RedisUrl>,
    /// User of Redis' access control lists.
    pub username: Option<String>,
    /// The password itself.
    pub password: Option<Secret>,
    /// A file that holds the password.
    pub password_file: Option<PathBuf>,
    /// First part of every key.
    #[serde(deserialize_with = "prefix")]
    pub prefix: String,
    /// Number of partitions, fixed when the layout is created.
    #[serde(deserialize_with = "value::number::<_, u16, 1, 1024>")]
    pub partitions: u16,
    /// Connections for commands, beside those that follow the feeds.
    #[serde(deserialize_with = "value::number::<_, usize, 1, 256>")]
    pub pool_size: usize,
    /// Accept an eviction policy that may remove channels.
    pub allow_eviction: bool,
}

impl Redis {
    /// The password from `password` or `password_file`, `None` when the URL may have one. A line break at the
    /// end of the file does not count.
    ///
    /// # Errors
    /// When the file cannot be read as UTF-8, or is empty.
    pub fn read_password(&self) -> Result<Option<Secret>, InvalidKey> {
        let Some(path) = &self.password_file else {
            return Ok(self.password.clone());
        };
        let problem = |reason: String| InvalidKey { key: "redis.password_file", reason };
        let text = std::fs::read_to_string(path)
            .map_err(|e| problem(format!("cannot read {}: {e}", path.display())))?;
        let password = text.strip_suffix('\n').map_or(&*text, |line| line.strip_suffix('\r').unwrap_or(line));
        if password.is_empty() {
            return Err(problem(format!("{} is empty", path.display())));
        }
        Ok(Some(Secret::new(password)))
    }

    /// Checks what concerns several keys.
    pub(super) fn check(&self) -> Result<(), InvalidKey> {
        let in_url = self.url.as_ref().is_some_and(RedisUrl::has_password);
        let ways: Vec<&str> = [
            (in_url, "the password in redis.url"),
            (self.password.is_some(), "redis.password"),
            (self.password_file.is_some(), "redis.password_file"),
        ]
        .into_iter()
        .filter_map(|(given, way)| given.then_some(way))
        .collect();
        if let [.., first, second] = ways[..] {
            let key = if self.password_file.is_some() { "redis.password_file" } else { "redis.password" };
            let reason = format!("{first} and {second} are both set; keep one of them");
            return Err(InvalidKey { key, reason });
        }
        self.read_password().map(|_| ())
    }
}

/// Where Redis is. `Debug`, `Display` and serialization show no password.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl(String);

/// Why a text is no address of a Redis. No variant repeats the text, which may hold a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRedisUrl {
    /// Another scheme, or none.
    #[error("expected a URL that starts with redis://")]
    Scheme,
    /// A scheme that asks for TLS.
    #[error(
        "this release speaks to Redis without TLS only: use redis:// over a trusted network or a local TLS proxy"
    )]
    Tls,
    /// A scheme that asks for Sentinel or a cluster.
    #[error("this release keeps its channels in one Redis server: use redis://host:port")]
    Topology,
    /// Nothing names a host.
    #[error("the URL names no host; expected one as in redis://127.0.0.1:6379")]
    Host,
    /// White space or a control character.
    #[error("the URL contains white space or a control character; percent-encode it")]
    Character,
    /// An `@` behind the host: most likely the password contains a `/`, `?` or `#` that ended the authority.
    #[error(
        "the URL has an @ behind its host; percent-encode /, ?, # and @ in the password, or use redis.password_file"
    )]
    At,
}

impl RedisUrl {
    /// Validates scheme, host and characters; what follows them is the adapter's to understand.
    pub fn parse(url: &str) -> Result<Self, InvalidRedisUrl> {
        let (scheme, rest) = url.split_once("://").ok_or(InvalidRedisUrl::Scheme)?;
        match scheme {
            "redis" => {}
            "rediss" | "rediss-sentinel" | "rediss-cluster" => return Err(InvalidRedisUrl::Tls),
            "redis-sentinel" | "redis-cluster" => return Err(InvalidRedisUrl::Topology),
            _ => return Err(InvalidRedisUrl::Scheme),
        }
        if rest.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(InvalidRedisUrl::Character);
        }
        let (_, host) = split_userinfo(rest);
        if host.starts_with([':', '/', '?', '#']) || host.is_empty() {
            return Err(InvalidRedisUrl::Host);
        }
        if host.contains('@') {
            return Err(InvalidRedisUrl::At);
        }
        Ok(Self(url.to_owned()))
    }

    /// The whole URL with its password. Do not log it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    fn has_password(&self) -> bool {
        let rest = self.0.split_once("://").map_or("", |(_, rest)| rest);
        split_userinfo(rest).0.is_some_and(|userinfo| userinfo.contains(':'))
    }
}

/// Splits what follows `://` at the last `@` of the authority: a careless password may contain one.
fn split_userinfo(rest: &str) -> (Option<&str>, &str) {
    let authority_end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    match rest[..authority_end].rfind('@') {
        Some(at) => (Some(&rest[..at]), &rest[at + 1..]),
        None => (None, rest),
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, rest) = self.0.split_once("://").expect("checked by parse");
        let (userinfo, rest) = split_userinfo(rest);
        write!(f, "{scheme}://")?;
        match userinfo.map(|userinfo| userinfo.split_once(':')) {
            Some(Some((user, _))) => write!(f, "{user}:***@")?,
            // Without a colon it is a user's name, or a password in the wrong place.
            Some(None) => f.write_str("***@")?,
            None => {}
        }
        let (address, query) = rest.split_once('?').map_or((rest, None), |(a, q)| (a, Some(q)));
        f.write_str(address)?;
        for (i, pair) in query.into_iter().flat_map(|query| query.split('&')).enumerate() {
            f.write_str(if i == 0 { "?" } else { "&" })?;
            match pair.split_once('=') {
                Some((name, _)) if name.to_ascii_lowercase().contains("pass") => write!(f, "{name}=***")?,
                _ => f.write_str(pair)?,
            }
        }
        Ok(())
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<'de> Deserialize<'de> for RedisUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&value::hidden_text(deserializer)?).map_err(de::Error::custom)
    }
}

impl Serialize for RedisUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

fn prefix<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    value::parsed(deserializer, |text| {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | ':');
        if text.is_empty() || text.len() > PREFIX_BYTES_MAX || !text.chars().all(plain) {
            return Err(format!(
                "a prefix has 1 to {PREFIX_BYTES_MAX} characters out of letters, digits, '.', '_', '-' and ':', not {text:?}"
            ));
        }
        Ok(text.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_printed_url_shows_where_redis_is_and_no_password() {
        let cases = [
            ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
            ("redis://:s3cret@host", "redis://:***@host"),
            ("redis://app:s3cret@host:1/2", "redis://app:***@host:1/2"),
            ("redis://s3cret@host", "redis://***@host"),
            ("redis://a:s3cret@x@host", "redis://a:***@host"),
        ];
        for (url, printed) in cases {
            let url = RedisUrl::parse(url).unwrap();
            assert_eq!((url.to_string(), format!("{url:?}")), (printed.to_owned(), printed.to_owned()));
        }
    }

    #[test]
    fn urls_that_this_release_cannot_serve_are_refused_in_words() {
        let cases = [
            ("", InvalidRedisUrl::Scheme),
            ("redis-cluster://h:1?node=h2:2", InvalidRedisUrl::Topology),
            ("redis-sentinel://h:1?sentinelServiceName=m", InvalidRedisUrl::Topology),
            ("127.0.0.1:6379", InvalidRedisUrl::Scheme),
            ("http://h", InvalidRedisUrl::Scheme),
            ("rediss://h", InvalidRedisUrl::Tls),
            ("redis://", InvalidRedisUrl::Host),
            ("redis://:6379", InvalidRedisUrl::Host),
            ("redis://u:p@/0", InvalidRedisUrl::Host),
            ("redis://a b", InvalidRedisUrl::Character),
            ("redis://a:s3/cret@host", InvalidRedisUrl::At),
            ("redis://a:s3?cret@host", InvalidRedisUrl::At),
            ("redis://a:s3#cret@host", InvalidRedisUrl::At),
        ];
        for (url, error) in cases {
            assert_eq!(RedisUrl::parse(url), Err(error), "{url:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_url_or_an_error_and_printing_never_panics(text in "\\PC{0,60}", tail in "[/?#@:&=a]{0,20}") {
            for url in [text, format!("redis://{tail}"), format!("redis://h{tail}")] {
                if let Ok(url) = RedisUrl::parse(&url) {
                    let _ = (url.to_string(), url.has_password());
                }
            }
        }

        #[test]
        fn no_password_survives_printing(user in "[a-z]{0,5}", password in "[A-Z@:%]{1,20}") {
            let url = RedisUrl::parse(&format!("redis://{user}:{password}@host:1")).unwrap();
            prop_assert_eq!(url.to_string(), format!("redis://{user}:***@host:1"));
        }
    }
}
