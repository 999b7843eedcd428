//! Retention: how much of a channel is kept, by the first rule whose pattern matches its name.
//!
//! Invariant: every channel has exactly one [`Retention`]; the last rule's pattern matches everything.

use std::time::Duration;

use crate::channel::Channel;
use crate::pattern::Pattern;

/// What a channel keeps. `None` is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// At least this many of the newest events, and up to 200 more.
    pub max_length: Option<u64>,
    /// Older events are gone, exactly.
    pub max_age: Option<Duration>,
}

impl Retention {
    /// The maximum age in milliseconds; `None` is no limit.
    pub fn max_age_ms(&self) -> Option<u64> {
        self.max_age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX))
    }
}

/// One rule: channels whose name matches the pattern keep this much.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetentionRule {
    /// Exact name or glob.
    pub pattern: Pattern,
    /// What they keep.
    pub retention: Retention,
}

/// The rules in the order in which they are tried, and what holds where none matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetentionRules {
    rules: Vec<RetentionRule>,
    default: Retention,
}

impl RetentionRules {
    /// `rules` are tried in order before `default`.
    pub fn new(rules: Vec<RetentionRule>, default: Retention) -> Self {
        Self { rules, default }
    }

    /// What `channel` keeps.
    pub fn of(&self, channel: &Channel) -> Retention {
        let rule = self.rules.iter().find(|rule| rule.pattern.matches(channel.as_str()));
        rule.map_or(self.default, |rule| rule.retention)
    }

    /// Patterns and what they keep, in order, the default last under the pattern `*`.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Retention)> {
        let rules = self.rules.iter().map(|rule| (rule.pattern.as_str(), rule.retention));
        rules.chain(std::iter::once(("*", self.default)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_matching_rule_counts() {
        let keep = |n| Retention { max_length: Some(n), max_age: None };
        let rule = |pattern: &str, n| RetentionRule { pattern: Pattern::new(pattern), retention: keep(n) };
        let rules = RetentionRules::new(vec![rule("audit.login", 1), rule("audit.*", 2)], keep(3));
        let of = |name| rules.of(&Channel::parse(name).unwrap()).max_length;
        assert_eq!((of("audit.login"), of("audit.x"), of("other")), (Some(1), Some(2), Some(3)));
        assert_eq!(
            rules.iter().map(|(pattern, _)| pattern).collect::<Vec<_>>(),
            ["audit.login", "audit.*", "*"]
        );
    }
}
