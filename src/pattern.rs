//! Patterns over channel names: an exact name, or a glob in which `*` matches any run of characters.
//!
//! Invariants: matching takes time linear in the name for one `*` and never more than quadratic; what is put in
//! for `{sub}` is literal, so a user cannot choose an id that matches more than itself, and in a system channel's
//! pattern it stands as in the name of the user's own channel; a system channel is only matched by a pattern that begins
//! with `$` itself.

use std::borrow::Cow;
use std::fmt;

use crate::channel::escape_user;

/// What stands for the id of the user whom a pattern is for.
const SUBJECT: &str = "{sub}";

/// A compiled pattern.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Pattern {
    text: Box<str>,
    /// The literal pieces between the `*`; at least one.
    pieces: Box<[Box<str>]>,
}

impl Pattern {
    /// Every text is a pattern.
    pub fn new(pattern: &str) -> Self {
        Self { text: pattern.into(), pieces: pattern.split('*').map(Box::from).collect() }
    }

    /// The pattern with `{sub}` replaced by the id of a user. `None` when it needs one and there is none.
    pub fn of_subject(pattern: &str, subject: Option<&str>) -> Option<Self> {
        if !pattern.contains(SUBJECT) {
            return Some(Self::new(pattern));
        }
        let subject = subject?;
        let subject = if pattern.starts_with('$') { escape_user(subject) } else { Cow::Borrowed(subject) };
        let pieces = pattern.split('*').map(|piece| piece.replace(SUBJECT, &subject).into()).collect();
        Some(Self { text: pattern.into(), pieces })
    }

    /// The pattern as it was given.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether the whole `name` matches.
    pub fn matches(&self, name: &str) -> bool {
        let Some((head, rest)) = self.pieces.split_first() else { return false };
        let Some((tail, middle)) = rest.split_last() else { return **head == *name };
        let Some(mut name) = name.strip_prefix(&**head) else { return false };
        // Leftmost matches of the middle pieces leave the most for the last piece.
        for piece in middle {
            match name.find(&**piece) {
                Some(at) => name = &name[at + piece.len()..],
                None => return false,
            }
        }
        name.ends_with(&**tail)
    }

    /// Whether the pattern gives a right to the channel `name`: like [`Pattern::matches`], but a system channel
    /// has to be said.
    pub fn grants(&self, name: &str) -> bool {
        (!name.starts_with('$') || self.text.starts_with('$')) && self.matches(name)
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::channel::Channel;

    fn naive(pattern: &[char], name: &[char]) -> bool {
        match pattern.split_first() {
            None => name.is_empty(),
            Some(('*', rest)) => (0..=name.len()).any(|skip| naive(rest, &name[skip..])),
            Some((c, rest)) => name.first() == Some(c) && naive(rest, &name[1..]),
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(pattern in "[ab*]{0,8}", name in "[ab]{0,8}") {
            let chars = |s: &str| s.chars().collect::<Vec<_>>();
            prop_assert_eq!(Pattern::new(&pattern).matches(&name), naive(&chars(&pattern), &chars(&name)));
        }

        /// Seen to fail with the id put into the text before it is split at the stars.
        #[test]
        fn an_id_matches_itself_and_nothing_else(sub in "[ab*{}]{1,6}|\\{sub\\}", name in "[ab*{}]{0,8}") {
            let own = Pattern::of_subject("{sub}", Some(&sub)).unwrap();
            prop_assert_eq!(own.matches(&name), name == sub);
            let below = Pattern::of_subject("user.{sub}.*", Some(&sub)).unwrap();
            prop_assert_eq!(below.matches(&name), name.starts_with(&format!("user.{sub}.")));
            let wanted = format!("user.{sub}.x");
            prop_assert!(below.matches(&wanted));
        }
    }

    /// Seen to fail with the id put in as it is: `a%20b` could then write to the user `a b`.
    #[test]
    fn a_users_own_channel_is_named_by_the_pattern_for_it_and_no_others() {
        let users = ["a b", "a%20b", "a,b", "*", "{sub}", "u"];
        for user in users {
            let own = Pattern::of_subject("$user:{sub}", Some(user)).unwrap();
            for other in users {
                let channel = Channel::of_user(other).unwrap();
                assert_eq!(own.grants(channel.as_str()), user == other, "{user} {other}");
            }
        }
    }

    #[test]
    fn system_channels_have_to_be_said_and_without_an_id_nothing_is_granted() {
        for (pattern, granted) in
            [("*", false), ("$*", true), ("$user:*", true), ("*:1", false), ("$conn:*", false)]
        {
            assert_eq!(Pattern::new(pattern).grants("$user:1"), granted, "{pattern}");
        }
        assert!(Pattern::new("*").grants("orders"));
        let claimed = Pattern::of_subject("{sub}*", Some("$user:")).unwrap();
        assert!(!claimed.grants("$user:1"), "an id that looks like a system channel is none");
        assert_eq!(Pattern::of_subject("user.{sub}", None), None);
        assert!(Pattern::of_subject("news", None).is_some());
    }
}
