//! `[auth]`: who may do what, and with which keys that is proven.
//!
//! Invariant: after loading there is at most one source of keys for tokens, it was read, and what was read is
//! usable; an open broker is never reachable from other machines by accident.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::InvalidKey;
use super::server::Server;
use super::value::{self, Secret};
use crate::auth::keys::{ALGORITHMS, SECRET_BYTES_MIN, algorithm_name};
use crate::auth::{Algorithm, Granted, IssuerUrl, KeyHash, KeySet, TokenPolicy};

/// The `[auth]` section.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Auth {
    /// Serve everybody who can connect, also on an address that others can reach.
    pub open: bool,
    /// Channels that can be subscribed to without a token.
    pub anonymous_subscribe: Vec<String>,
    /// Whether figures and the description of the API need a credential.
    pub protect_metrics: bool,
    /// The cookie that may carry a token.
    #[serde(deserialize_with = "cookie")]
    pub cookie: String,
    /// Programs.
    #[serde(default)]
    pub keys: Vec<ApiKey>,
    /// Tokens.
    pub jwt: Jwt,
}

/// An entry of `[[auth.keys]]`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ApiKey {
    /// For people.
    pub name: String,
    /// Of the key.
    #[serde(deserialize_with = "key_hash", serialize_with = "print_key_hash")]
    pub sha256: KeyHash,
    /// Patterns of channels.
    #[serde(default)]
    pub subscribe: Vec<String>,
    /// Patterns of channels.
    #[serde(default)]
    pub publish: Vec<String>,
    /// Everything.
    #[serde(default)]
    pub admin: bool,
}

/// The `[auth.jwt]` section.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Jwt {
    /// The secret itself.
    pub secret: Option<Secret>,
    /// A file that holds it.
    pub secret_file: Option<PathBuf>,
    /// A file with a public key in PEM.
    pub public_key_file: Option<PathBuf>,
    /// A file with a key set.
    pub jwks_file: Option<PathBuf>,
    /// Where an issuer publishes its key set.
    #[serde(default, deserialize_with = "issuer_url", serialize_with = "print_issuer_url")]
    pub jwks_url: Option<IssuerUrl>,
    /// With which algorithms; empty is what follows from the kind of key.
    #[serde(default, deserialize_with = "algorithms", serialize_with = "print_algorithms")]
    pub algorithms: Vec<Algorithm>,
    /// Who may have issued a token.
    #[serde(default, deserialize_with = "one_or_many")]
    pub issuer: Vec<String>,
    /// Whom a token may be for.
    #[serde(default, deserialize_with = "one_or_many")]
    pub audience: Vec<String>,
    /// How far clocks may differ.
    #[serde(
        deserialize_with = "value::duration::<_, 0, { value::HOUR }>",
        serialize_with = "value::print_duration"
    )]
    pub leeway: Duration,
    /// How long tokens count, and revocations are kept.
    #[serde(
        deserialize_with = "value::duration::<_, 1_000, { 3_650 * value::DAY }>",
        serialize_with = "value::print_duration"
    )]
    pub lifetime_max: Duration,
}

/// Where the keys for tokens come from, with what was read there.
#[derive(Debug)]
pub enum TokenKeys {
    /// From this configuration.
    Fixed(KeySet),
    /// From an issuer.
    Issuer(IssuerUrl),
}

impl Auth {
    /// Whether everybody may do everything, because no key is configured.
    pub fn has_no_key(&self) -> bool {
        self.keys.is_empty() && !self.jwt.has_key()
    }

    /// The programs' keys.
    pub fn api_keys(&self) -> Vec<crate::auth::ApiKey> {
        let key = |key: &ApiKey| crate::auth::ApiKey {
            name: key.name.clone(),
            sha256: key.sha256,
            granted: Granted {
                subscribe: key.subscribe.clone(),
                publish: key.publish.clone(),
                admin: key.admin,
            },
        };
        self.keys.iter().map(key).collect()
    }

    /// Refuses to be open to the world by accident, and what contradicts itself.
    pub(super) fn check(&self, server: &Server) -> Result<(), InvalidKey> {
        self.check_keys()?;
        self.jwt.check(server)?;
        if !self.has_no_key() {
            if self.open {
                let reason = "a key is configured, so the broker is not open; remove one of them".to_owned();
                return Err(InvalidKey { key: "auth.open", reason });
            }
            return Ok(());
        }
        if !self.anonymous_subscribe.is_empty() {
            let reason =
                "without a key everybody may do everything; configure one (auth.jwt or auth.keys)".to_owned();
            return Err(InvalidKey { key: "auth.anonymous_subscribe", reason });
        }
        if self.open || server.is_loopback() {
            return Ok(());
        }
        let reason = format!(
            "{} can be reached from other machines and no key is configured, so everybody could read and publish; \
             listen on 127.0.0.1, configure a key (auth.jwt or auth.keys), or set auth.open = true \
             (HEADWATER_AUTH__OPEN=true) if that is wanted",
            server.listen
        );
        Err(InvalidKey { key: "server.listen", reason })
    }

    fn check_keys(&self) -> Result<(), InvalidKey> {
        for (i, key) in self.keys.iter().enumerate() {
            let earlier = &self.keys[..i];
            let twice = if earlier.iter().any(|other| other.name == key.name) {
                "name"
            } else if earlier.iter().any(|other| other.sha256 == key.sha256) {
                "sha256"
            } else {
                continue;
            };
            let reason = format!("the key {:?} has the {twice} of another one", key.name);
            return Err(InvalidKey { key: "auth.keys", reason });
        }
        Ok(())
    }
}

impl Jwt {
    /// Where keys come from, each by its name in the configuration.
    fn sources(&self) -> impl Iterator<Item = &'static str> {
        [
            (self.secret.is_some(), "auth.jwt.secret"),
            (self.secret_file.is_some(), "auth.jwt.secret_file"),
            (self.public_key_file.is_some(), "auth.jwt.public_key_file"),
            (self.jwks_file.is_some(), "auth.jwt.jwks_file"),
            (self.jwks_url.is_some(), "auth.jwt.jwks_url"),
        ]
        .into_iter()
        .filter_map(|(is_set, key)| is_set.then_some(key))
    }

    fn has_key(&self) -> bool {
        self.sources().next().is_some()
    }

    /// The keys; `None` when tokens are not taken.
    ///
    /// # Errors
    /// When a file cannot be read or holds no key, and when a secret can be guessed and others can try.
    pub fn keys(&self, server: &Server) -> Result<Option<TokenKeys>, InvalidKey> {
        let Some((key, keys)) = self.fixed_keys()? else {
            return Ok(self.jwks_url.clone().map(TokenKeys::Issuer));
        };
        if keys.has_weak_secret() && !server.is_loopback() {
            let reason = format!(
                "fewer than {SECRET_BYTES_MIN} bytes can be guessed from any token (RFC 7518, section 3.2), and {} can \
                 be reached from other machines; openssl rand -hex 32 makes a good one",
                server.listen
            );
            return Err(InvalidKey { key, reason });
        }
        Ok(Some(TokenKeys::Fixed(keys)))
    }

    /// What this configuration holds, or the file that it names, under the name of the key that says so.
    fn fixed_keys(&self) -> Result<Option<(&'static str, KeySet)>, InvalidKey> {
        let (key, keys) = if let Some(secret) = self.signing_secret()? {
            let key = if self.secret.is_some() { "auth.jwt.secret" } else { "auth.jwt.secret_file" };
            (key, KeySet::of_secret(&secret, &self.algorithms))
        } else if let Some(path) = &self.public_key_file {
            let key = "auth.jwt.public_key_file";
            let pem = read(path, key)?;
            (key, KeySet::of_pem(&String::from_utf8_lossy(&pem), &self.algorithms))
        } else if let Some(path) = &self.jwks_file {
            let key = "auth.jwt.jwks_file";
            (key, KeySet::of_jwks(&read(path, key)?, &self.algorithms))
        } else {
            return Ok(None);
        };
        keys.map(|keys| Some((key, keys))).map_err(|reason| InvalidKey { key, reason })
    }

    /// The secret from `secret` or `secret_file`. A line break at the end of the file does not count.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn signing_secret(&self) -> Result<Option<Vec<u8>>, InvalidKey> {
        let Some(path) = &self.secret_file else {
            return Ok(self.secret.as_ref().map(|secret| secret.expose().as_bytes().to_vec()));
        };
        let mut secret = read(path, "auth.jwt.secret_file")?;
        if secret.ends_with(b"\n") {
            secret.pop();
        }
        if secret.ends_with(b"\r") {
            secret.pop();
        }
        Ok(Some(secret))
    }

    /// What a token has to be beside signed.
    pub fn policy(&self) -> TokenPolicy {
        TokenPolicy {
            issuers: self.issuer.clone(),
            audiences: self.audience.clone(),
            leeway: self.leeway,
            lifetime_max: self.lifetime_max,
        }
    }

    fn check(&self, server: &Server) -> Result<(), InvalidKey> {
        let mut sources = self.sources();
        if let (Some(first), Some(second)) = (sources.next(), sources.next()) {
            return Err(InvalidKey { key: second, reason: format!("{first} is set too; keep one of them") });
        }
        let needs_key = [
            (self.algorithms.is_empty(), "auth.jwt.algorithms"),
            (self.issuer.is_empty(), "auth.jwt.issuer"),
            (self.audience.is_empty(), "auth.jwt.audience"),
        ];
        if !self.has_key()
            && let Some((_, key)) = needs_key.into_iter().find(|(is_empty, _)| !is_empty)
        {
            let reason =
                "nothing says with which key tokens are verified; set auth.jwt.secret, secret_file, \
                          public_key_file, jwks_file or jwks_url"
                    .to_owned();
            return Err(InvalidKey { key, reason });
        }
        self.keys(server).map(|_| ())
    }
}

fn read(path: &Path, key: &'static str) -> Result<Vec<u8>, InvalidKey> {
    std::fs::read(path)
        .map_err(|error| InvalidKey { key, reason: format!("cannot read {}: {error}", path.display()) })
}

/// The name of a cookie is a token of RFC 9110, section 5.6.2.
fn cookie<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    value::parsed(deserializer, |text| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if text.is_empty() || !text.bytes().all(plain) {
            return Err(format!("{text:?} is no name of a cookie: letters, digits, '-', '_' and '.'"));
        }
        Ok(text.to_owned())
    })
}

fn key_hash<'de, D: Deserializer<'de>>(deserializer: D) -> Result<KeyHash, D::Error> {
    // What was given may be the key itself.
    let text = value::hidden_text(deserializer)?;
    let hash = KeyHash::parse(&text).ok_or_else(|| {
        de::Error::custom(
            "expected the SHA-256 of the key in 64 hexadecimal digits, as printf %s KEY | sha256sum prints it",
        )
    })?;
    // What sha256sum prints when the variable that should hold the key is not set, after printf and after echo.
    if ["", "\n"].map(KeyHash::of).contains(&hash) {
        return Err(de::Error::custom(
            "this is the SHA-256 of nothing, so everybody would have the key; make one with openssl rand -hex 32",
        ));
    }
    Ok(hash)
}

fn print_key_hash<S: Serializer>(hash: &KeyHash, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(hash)
}

fn issuer_url<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<IssuerUrl>, D::Error> {
    value::parsed(deserializer, IssuerUrl::parse).map(Some)
}

#[expect(clippy::ref_option, reason = "serde hands over a reference to the field")]
fn print_issuer_url<S: Serializer>(url: &Option<IssuerUrl>, serializer: S) -> Result<S::Ok, S::Error> {
    match url {
        Some(url) => serializer.collect_str(url),
        None => serializer.serialize_none(),
    }
}

fn algorithms<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Algorithm>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    let parse = |text: &String| {
        let known = ALGORITHMS.iter().find(|(name, _)| name == text);
        known.map(|(_, algorithm)| *algorithm).ok_or_else(|| {
            let names: Vec<&str> = ALGORITHMS.iter().map(|(name, _)| *name).collect();
            de::Error::custom(format!("{text:?} is none of {}", names.join(", ")))
        })
    };
    texts.iter().map(parse).collect()
}

fn print_algorithms<S: Serializer>(algorithms: &[Algorithm], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(algorithms.iter().map(|algorithm| algorithm_name(*algorithm)))
}

/// A text or a list of texts.
fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    struct Texts;
    impl<'de> de::Visitor<'de> for Texts {
        type Value = Vec<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a text, or a list of texts")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
            Ok(vec![text.to_owned()])
        }

        fn visit_seq<A: de::SeqAccess<'de>>(self, mut texts: A) -> Result<Self::Value, A::Error> {
            let mut list = Vec::new();
            while let Some(text) = texts.next_element()? {
                list.push(text);
            }
            Ok(list)
        }
    }
    deserializer.deserialize_any(Texts)
}
