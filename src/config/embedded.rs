//! `[embedded]`: where the embedded log keeps its files.

use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize};

use super::value;

/// The `[embedded]` section. It counts when `redis.url` is not set.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Embedded {
    /// The directory; created when it is missing.
    #[serde(deserialize_with = "directory")]
    pub data_dir: PathBuf,
}

/// An empty path most likely comes from a variable that was not set.
fn directory<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    value::parsed(deserializer, |text| match text {
        "" => Err("is empty; name a directory, \".\" for the one you are in"),
        text => Ok(PathBuf::from(text)),
    })
}
