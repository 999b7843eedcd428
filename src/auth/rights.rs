//! Rights: which channels a caller may subscribe and publish to.

use serde::{Deserialize, Serialize};

use crate::channel::Channel;
use crate::pattern::Pattern;

/// Rights as they are written in a token's claim `headwater` and beside an API key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct Granted {
    /// Patterns of channels; `{sub}` stands for the user's id.
    pub subscribe: Vec<String>,
    /// Patterns of channels, `$user:` and `$conn:` among them where they are said.
    pub publish: Vec<String>,
    /// Everything.
    pub admin: bool,
}

/// The same for one user.
#[derive(Clone, Debug, Default)]
pub struct Rights {
    subscribe: Box<[Pattern]>,
    publish: Box<[Pattern]>,
    admin: bool,
}

impl Rights {
    /// Everything, for everybody, as an open broker gives them.
    pub(super) fn all() -> Self {
        Self { admin: true, ..Self::default() }
    }

    /// What is granted to `user`, and what everybody may subscribe to.
    pub(super) fn of(granted: &Granted, anonymous: &[String], user: Option<&str>) -> Self {
        let compile = |text: &String| Pattern::of_subject(text, user);
        Self {
            subscribe: granted.subscribe.iter().chain(anonymous).filter_map(compile).collect(),
            publish: granted.publish.iter().filter_map(compile).collect(),
            admin: granted.admin,
        }
    }

    pub(super) fn subscribe(&self, channel: &Channel) -> bool {
        self.admin || self.subscribe.iter().any(|pattern| pattern.grants(channel.as_str()))
    }

    pub(super) fn publish(&self, channel: &Channel) -> bool {
        self.admin || self.publish.iter().any(|pattern| pattern.grants(channel.as_str()))
    }

    pub(super) fn publish_anywhere(&self) -> bool {
        self.admin || !self.publish.is_empty()
    }

    pub(super) fn admin(&self) -> bool {
        self.admin
    }

    pub(super) fn subscribe_anywhere(&self) -> bool {
        self.admin || !self.subscribe.is_empty()
    }
}
