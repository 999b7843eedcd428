//! Configuration: built-in defaults, files, the environment and flags become one checked [`Config`].
//!
//! Invariant: a `Config` that was loaded is valid as a whole, every key that is accepted has an effect, and no
//! secret is printed. One section is one file here; `config/default.toml` documents every key. To add a
//! section, add its file and its field. Neighbours: `layers.rs` stacks the sources, `print.rs` writes the
//! result down, `value.rs` reads single values.

pub mod auth;
pub mod cors;
pub mod drain;
pub mod embedded;
pub mod fanout;
mod layers;
pub mod limits;
mod print;
pub mod publish;
pub mod redis;
pub mod retention;
pub mod server;
pub mod sse;
pub mod telemetry;
pub mod tls;
mod value;

use std::ffi::OsString;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::log::redis::{Endpoint, RedisOptions};
use crate::log::retention::RetentionRules;
pub use layers::Source;
use layers::{Origins, Stack};
pub use server::NodeId;
pub use value::{Limit, Secret};

/// What the environment's variables of ours begin with.
pub const ENVIRONMENT_PREFIX: &str = "HEADWATER_";

/// The whole configuration, one field per section.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the broker listens and what it is called.
    pub server: server::Server,
    /// Which Redis holds the channels.
    pub redis: redis::Redis,
    /// Where the embedded log keeps its files.
    pub embedded: embedded::Embedded,
    /// How much of a channel is kept.
    pub retention: retention::Retention,
    /// What streams look like to their clients.
    pub sse: sse::Sse,
    /// How much may be published at once.
    pub publish: publish::Publish,
    /// How much of the channels' ends a node holds in memory.
    pub fanout: fanout::Fanout,
    /// Who may do what.
    pub auth: auth::Auth,
    /// How many streams a node carries.
    pub limits: limits::Limits,
    /// Which web pages of other origins may use the broker.
    pub cors: cors::Cors,
    /// The certificate that clients are shown.
    pub tls: tls::Tls,
    /// How the broker leaves.
    pub drain: drain::Drain,
    /// What the broker tells its operators.
    pub telemetry: telemetry::Telemetry,
    #[serde(skip)]
    origins: Origins,
}

/// Where the configuration comes from, weakest first. It holds secrets in the clear and has no `Debug`.
#[derive(Clone)]
pub struct Sources {
    /// The name of this node unless something else names it.
    pub node_id: NodeId,
    /// TOML files; later ones override earlier ones.
    pub files: Vec<PathBuf>,
    /// Variables; those without [`ENVIRONMENT_PREFIX`] or without `__` do not count.
    pub environment: Vec<(OsString, OsString)>,
    /// Command line flags.
    pub flags: Vec<Flag>,
}

/// A command line flag that sets a key.
#[derive(Clone)]
pub struct Flag {
    /// As the user wrote it, such as `--listen`.
    pub name: &'static str,
    /// The key it sets, such as `server.listen`.
    pub key: &'static str,
    /// Taken as text.
    pub value: String,
}

/// Why there is no configuration. Every variant says which source is at fault and how to mend it.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file could not be read.
    #[error("cannot read configuration file {}: {error}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// A file is not TOML.
    #[error("{}, line {line}: {reason}", path.display())]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What the parser says.
        reason: String,
    },
    /// A variable is not UTF-8.
    #[error("environment variable {0} is not UTF-8")]
    NotUtf8(String),
    /// Nothing knows this key.
    #[error("{origin}: unknown key {key}{}", closest.as_ref().map(|c| format!("; did you mean {c}?")).unwrap_or_default())]
    UnknownKey {
        /// Who sets it.
        origin: Source,
        /// Section and key, joined by dots.
        key: String,
        /// A known key that looks similar.
        closest: Option<String>,
    },
    /// The value is not one that the key can have.
    #[error("{origin}: {key}: {reason}")]
    Invalid {
        /// Who sets it.
        origin: Source,
        /// Section and key, joined by dots.
        key: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
}

/// What is wrong with a key in the light of others.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {reason}")]
pub struct InvalidKey {
    /// Section and key, joined by dots.
    pub key: &'static str,
    /// What is wrong, and what would be right.
    pub reason: String,
}

impl Sources {
    /// Nothing but the built-in defaults, for a node of this name.
    pub fn defaults(node_id: NodeId) -> Self {
        Self { node_id, files: Vec::new(), environment: Vec::new(), flags: Vec::new() }
    }

    /// Files and flags with the environment of this process, on a node named after this host.
    pub fn of_process(files: Vec<PathBuf>, flags: Vec<Flag>) -> Self {
        let hostname = gethostname::gethostname();
        let node_id = NodeId::generate(&hostname.to_string_lossy(), rand::random());
        Self { node_id, files, environment: std::env::vars_os().collect(), flags }
    }
}

impl Config {
    /// Stacks the sources and checks the result.
    ///
    /// # Errors
    /// At the first source that cannot be read, key that is unknown, value out of range, or contradiction.
    pub fn load(sources: &Sources) -> Result<Self, ConfigError> {
        let mut stack = Stack::new(&sources.node_id);
        for path in &sources.files {
            let text = std::fs::read_to_string(path)
                .map_err(|error| ConfigError::Read { path: path.clone(), error })?;
            stack.push_file(path, &text)?;
        }
        stack.push_environment(&sources.environment)?;
        for flag in &sources.flags {
            stack.push_flag(flag)?;
        }
        let config = stack.finish();
        config.check().map_err(|InvalidKey { key, reason }| ConfigError::Invalid {
            origin: config.source_of(key),
            key: key.to_owned(),
            reason,
        })?;
        Ok(config)
    }

    /// The retention rules as the log needs them.
    pub fn retention_rules(&self) -> RetentionRules {
        self.retention.to_rules()
    }

    /// How this node uses Redis; `None` when the embedded log serves.
    ///
    /// # Errors
    /// When `redis.password_file` cannot be read any more.
    pub fn redis_options(&self) -> Result<Option<RedisOptions>, InvalidKey> {
        let Some(url) = &self.redis.url else {
            return Ok(None);
        };
        let endpoint = Endpoint {
            url: url.expose().to_owned(),
            username: self.redis.username.clone(),
            password: self.redis.read_password()?.map(|password| password.expose().to_owned()),
        };
        endpoint.check().map_err(|reason| InvalidKey { key: "redis.url", reason })?;
        Ok(Some(RedisOptions {
            endpoint,
            prefix: self.redis.prefix.clone(),
            partitions: self.redis.partitions,
            pool_size: self.redis.pool_size,
            allow_eviction: self.redis.allow_eviction,
            retention: self.retention_rules(),
        }))
    }

    /// Who set a key, such as `sse.retry`.
    pub fn source_of(&self, key: &str) -> Source {
        self.origins.get(key).cloned().unwrap_or(Source::Default)
    }

    /// The configuration in effect as TOML, with the source of each value as a comment, and without secrets.
    pub fn to_toml(&self) -> String {
        print::to_toml(self)
    }

    fn check(&self) -> Result<(), InvalidKey> {
        self.auth.check(&self.server)?;
        self.redis.check()?;
        self.redis_options()?;
        self.tls.certificate()?;
        self.publish.check()?;
        self.fanout.check()
    }
}

#[cfg(test)]
mod tests;
