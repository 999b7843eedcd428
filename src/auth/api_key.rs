//! API keys: secrets of programs, of which only the SHA-256 is known here.
//!
//! Invariant: looking one up takes the same time whichever key matches, and whether any does.

use std::fmt;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};

use super::rights::Granted;

/// The SHA-256 of a key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct KeyHash([u8; 32]);

/// One program's key and what it may do.
#[derive(Clone, Debug)]
pub struct ApiKey {
    /// For people and for limits.
    pub name: String,
    /// Of the key itself.
    pub sha256: KeyHash,
    /// What it may do; `{sub}` matches nothing, since a key is no user.
    pub granted: Granted,
}

impl KeyHash {
    /// Of a presented key.
    pub fn of(key: &str) -> Self {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, key.as_bytes()).as_ref());
        Self(hash)
    }

    /// Reads 64 hexadecimal digits, as `sha256sum` prints them.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.as_bytes();
        let mut hash = [0; 32];
        if text.len() != 2 * hash.len() {
            return None;
        }
        for (byte, digits) in hash.iter_mut().zip(text.chunks_exact(2)) {
            let digit = |d: u8| char::from(d).to_digit(16).and_then(|value| u8::try_from(value).ok());
            *byte = digit(digits[0])? << 4 | digit(digits[1])?;
        }
        Some(Self(hash))
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The key that was presented, if it is one. All are compared, so that time tells nothing.
pub(super) fn find<'a>(keys: &'a [ApiKey], presented: &str) -> Option<&'a ApiKey> {
    let presented = KeyHash::of(presented);
    let mut found = None;
    for key in keys {
        if verify_slices_are_equal(&key.sha256.0, &presented.0).is_ok() {
            found = Some(key);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_read_as_sha256sum_prints_it() {
        let printed = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
        let hash = KeyHash::parse(printed).unwrap();
        assert_eq!(hash, KeyHash::of("secret"));
        assert_eq!(hash.to_string(), printed);
        assert_eq!(KeyHash::parse(&printed.to_uppercase()), Some(hash));
        for text in
            ["", "secret", &printed[1..], &format!("{printed}0"), &printed.replace('b', "g"), &"é".repeat(32)]
        {
            assert_eq!(KeyHash::parse(text), None, "{text}");
        }
    }

    #[test]
    fn the_key_that_was_presented_is_found() {
        let key = |name: &str| ApiKey {
            name: name.to_owned(),
            sha256: KeyHash::of(name),
            granted: Granted::default(),
        };
        let keys = ["a", "b", "c"].map(key);
        assert_eq!(find(&keys, "b").unwrap().name, "b");
        assert!(find(&keys, "").is_none() && find(&keys, "d").is_none() && find(&[], "a").is_none());
        assert!(find(&keys, &keys[0].sha256.to_string()).is_none(), "the stored hash is no key");
    }
}
