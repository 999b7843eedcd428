//! `[auth]`: who may do what. This release knows the open broker only.

use serde::{Deserialize, Serialize};

use super::{InvalidKey, server::Server};

/// The `[auth]` section.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Auth {
    /// Serve everybody who can connect, also on an address that others can reach.
    pub open: bool,
}

impl Auth {
    /// Refuses to be open to the world by accident.
    pub(super) fn check(&self, server: &Server) -> Result<(), InvalidKey> {
        if self.open || server.is_loopback() {
            return Ok(());
        }
        let reason = format!(
            "{} can be reached from other machines and no key is configured, so everybody could read and \
             publish; listen on 127.0.0.1, or set auth.open = true (HEADWATER_AUTH__OPEN=true) if that is wanted",
            server.listen
        );
        Err(InvalidKey { key: "server.listen", reason })
    }
}
