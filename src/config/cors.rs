//! `[cors]`: which web pages of other origins may use the broker.
//!
//! Invariant: an [`Origin`] is written exactly as browsers write it in `Origin:` (RFC 6454, section 6.1), so
//! that comparing bytes decides.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The `[cors]` section.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Cors {
    /// Pages that may use the broker.
    pub allowed_origins: AllowedOrigins,
}

/// Which origins are allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllowedOrigins {
    /// Every page, and then never with credentials.
    Any,
    /// Exactly these; none when empty.
    Listed(Vec<Origin>),
}

impl AllowedOrigins {
    /// Whether a page of this origin, as it stands in `Origin:`, is allowed.
    pub fn allows(&self, origin: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Listed(origins) => origins.iter().any(|listed| *listed.0 == *origin),
        }
    }

    /// Whether this very origin was listed; `"*"` lists none.
    pub fn lists(&self, origin: &str) -> bool {
        matches!(self, Self::Listed(_)) && self.allows(origin)
    }
}

/// Scheme, host, and the port unless it is the scheme's own.
#[derive(Clone, PartialEq, Eq)]
pub struct Origin(Box<str>);

/// Why a text is no origin as browsers send it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidOrigin {
    /// There is no `scheme://host` in it.
    #[error(
        "{0:?} is no origin; expected scheme://host or scheme://host:port, as in \"https://app.example\""
    )]
    Malformed(String),
    /// Browsers write the same origin in another way.
    #[error("{given:?} never equals what a browser sends; write {canonical:?}")]
    NotCanonical {
        /// What was given.
        given: String,
        /// What was meant.
        canonical: String,
    },
}

impl Origin {
    /// Validates an origin from outside.
    pub fn parse(text: &str) -> Result<Self, InvalidOrigin> {
        let malformed = || InvalidOrigin::Malformed(text.to_owned());
        let lower = text.to_ascii_lowercase();
        let (scheme, rest) = lower.split_once("://").ok_or_else(malformed)?;
        let scheme_is_valid = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'));
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let (host, port) = split_port(authority).ok_or_else(malformed)?;
        if !scheme_is_valid || !is_host(host) {
            return Err(malformed());
        }
        let default_port = match scheme {
            "http" => Some(80),
            "https" => Some(443),
            _ => None,
        };
        let canonical = match port {
            Some(port) if Some(port) != default_port => format!("{scheme}://{host}:{port}"),
            _ => format!("{scheme}://{host}"),
        };
        if canonical != text {
            return Err(InvalidOrigin::NotCanonical { given: text.to_owned(), canonical });
        }
        Ok(Self(canonical.into()))
    }

    /// The origin as it stands in `Origin:`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn split_port(authority: &str) -> Option<(&str, Option<u16>)> {
    // The colons of an IPv6 address stand in brackets.
    let host_end = authority.find(']').map_or(0, |bracket| bracket + 1);
    match authority[host_end..].split_once(':') {
        None => Some((authority, None)),
        Some((rest, port)) if port.bytes().all(|b| b.is_ascii_digit()) => {
            Some((&authority[..host_end + rest.len()], Some(port.parse().ok()?)))
        }
        Some(_) => None,
    }
}

fn is_host(host: &str) -> bool {
    if let Some(address) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return address.parse::<std::net::Ipv6Addr>().is_ok();
    }
    !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl<'de> Deserialize<'de> for AllowedOrigins {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let texts = Vec::<String>::deserialize(deserializer)?;
        match &texts[..] {
            [any] if any == "*" => Ok(Self::Any),
            texts if texts.iter().any(|text| text == "*") => {
                Err(de::Error::custom("\"*\" allows every origin and must stand alone"))
            }
            texts => {
                let origins = texts.iter().map(|text| Origin::parse(text).map_err(de::Error::custom));
                origins.collect::<Result<_, _>>().map(Self::Listed)
            }
        }
    }
}

impl Serialize for AllowedOrigins {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Any => serializer.collect_seq(["*"]),
            Self::Listed(origins) => serializer.collect_seq(origins.iter().map(Origin::as_str)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn origins_are_taken_only_as_browsers_write_them() {
        for origin in [
            "https://app.example",
            "http://localhost:3000",
            "http://[::1]:3000",
            "http://192.0.2.1",
            "capacitor://localhost",
            "chrome-extension://abcdef",
        ] {
            assert_eq!(Origin::parse(origin).unwrap().as_str(), origin);
        }
        let mended = [
            ("https://app.example/", "https://app.example"),
            ("https://App.example", "https://app.example"),
            ("https://app.example:443", "https://app.example"),
            ("http://app.example:80", "http://app.example"),
            ("https://app.example/path?q#f", "https://app.example"),
        ];
        for (given, canonical) in mended {
            let error = InvalidOrigin::NotCanonical { given: given.into(), canonical: canonical.into() };
            assert_eq!(Origin::parse(given), Err(error));
        }
        for text in ["", "null", "*", "app.example", "https://", "https://*.example", "https://a:x", "://a"] {
            assert!(matches!(Origin::parse(text), Err(InvalidOrigin::Malformed(_))), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_an_origin_or_an_error_that_mends_it(text in "\\PC{0,30}", tail in "[a-zA-Z0-9.:/\\[\\]-]{0,20}") {
            for text in [text, format!("https://{tail}")] {
                if let Err(InvalidOrigin::NotCanonical { canonical, .. }) = Origin::parse(&text) {
                    prop_assert!(Origin::parse(&canonical).is_ok(), "{:?} -> {:?}", text, canonical);
                }
            }
        }
    }
}
