//! `[embedded]`: where the embedded log keeps its files.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The `[embedded]` section. It counts when `redis.url` is not set.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Embedded {
    /// The directory; created when it is missing.
    pub data_dir: PathBuf,
}
