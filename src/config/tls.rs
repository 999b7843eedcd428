//! `[tls]`: the certificate that clients are shown. Without one the broker speaks plain HTTP.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::InvalidKey;
use crate::http::Certificate;

/// The `[tls]` section.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The certificate and its chain, in PEM.
    pub cert_file: Option<PathBuf>,
    /// Its private key, in PEM.
    pub key_file: Option<PathBuf>,
}

impl Tls {
    /// What the files hold now; `None` without TLS.
    ///
    /// # Errors
    /// When only one file is named, or they cannot be used.
    pub fn certificate(&self) -> Result<Option<Certificate>, InvalidKey> {
        match (&self.cert_file, &self.key_file) {
            (None, None) => Ok(None),
            (Some(cert_file), Some(key_file)) => Certificate::read(cert_file, key_file)
                .map(Some)
                .map_err(|reason| InvalidKey { key: "tls.cert_file", reason }),
            (Some(_), None) => Err(lacks("tls.cert_file", "tls.key_file")),
            (None, Some(_)) => Err(lacks("tls.key_file", "tls.cert_file")),
        }
    }
}

fn lacks(key: &'static str, other: &str) -> InvalidKey {
    InvalidKey { key, reason: format!("{other} is missing beside it") }
}
