//! The function libraries: their sources, and loading them where a server has none.
//!
//! Invariant: a library with a version in its name never changes once released (a test pins its digest); a
//! change is a new library beside it, so that two releases work side by side.

use fred::clients::Client;
use fred::types::Value;

use super::connection::{Effect, call};
use super::value::Reply;
use crate::log::LogError;

/// A library's name and source, without the line that names it.
pub(super) struct Library {
    pub(super) name: &'static str,
    source: &'static str,
    /// Whether a newer release may replace it.
    replaceable: bool,
}

/// The libraries of layout 1.
pub(super) const LIBRARIES: [Library; 2] = [
    Library {
        name: "headwater_v1",
        source: concat!(
            include_str!("../../../migrations/0001/core.lua"),
            include_str!("../../../migrations/0001/headwater_v1.lua")
        ),
        replaceable: false,
    },
    Library {
        name: "headwater",
        source: concat!(
            include_str!("../../../migrations/0001/core.lua"),
            include_str!("../../../migrations/0001/headwater.lua")
        ),
        replaceable: true,
    },
];

impl Library {
    fn code(&self) -> String {
        format!("#!lua name={}\n{}", self.name, self.source)
    }

    /// Whether the server has exactly this library.
    pub(super) async fn state(&self, client: &Client) -> Result<LibraryState, LogError> {
        let args = ["LIST", "LIBRARYNAME", self.name, "WITHCODE"].map(Value::from).to_vec();
        let listed = call(client, Effect::Read, "FUNCTION", args).await?;
        let Some(library) = listed.elements().first() else {
            return Ok(LibraryState::Missing);
        };
        let code = library.field("library_code").and_then(Reply::text).unwrap_or_default();
        Ok(if code == self.code() { LibraryState::Loaded } else { LibraryState::Different })
    }

    async fn load(&self, client: &Client, replace: bool) -> Result<(), LogError> {
        let mut args = vec![Value::from("LOAD")];
        if replace {
            args.push(Value::from("REPLACE"));
        }
        args.push(Value::from(self.code()));
        match call(client, Effect::Write, "FUNCTION", args).await {
            Err(LogError::Damaged(error)) if error.contains("already exists") => Ok(()),
            result => result.map(drop),
        }
    }
}

/// What a server holds under a library's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LibraryState {
    Missing,
    Loaded,
    Different,
}

/// Loads what is missing. `newest` says that no newer layout is known, so that the unversioned library is ours.
pub(super) async fn load_missing(client: &Client, newest: bool) -> Result<(), LogError> {
    for library in &LIBRARIES {
        match library.state(client).await? {
            LibraryState::Loaded => {}
            LibraryState::Missing => library.load(client, false).await?,
            LibraryState::Different if library.replaceable && newest => library.load(client, true).await?,
            LibraryState::Different if library.replaceable => {}
            LibraryState::Different => {
                return Err(LogError::Damaged(format!(
                    "the function library {0} in Redis is not the released one; remove it with \
                     FUNCTION DELETE {0} if no broker needs it",
                    library.name
                )));
            }
        }
    }
    Ok(())
}

/// Calls a function on one partition's feed; loads the libraries first where the server lost them.
pub(super) async fn fcall(
    client: &Client,
    effect: Effect,
    function: &'static str,
    feed: &str,
    args: impl Fn() -> Vec<Value>,
) -> Result<Value, LogError> {
    let all_args = || {
        let mut all = vec![Value::from(function), Value::from(1), Value::from(feed)];
        all.extend(args());
        all
    };
    match call(client, effect, "FCALL", all_args()).await {
        // A new primary has none; nothing was executed.
        Err(LogError::Damaged(error)) if error.contains("Function not found") => {
            load_missing(client, false).await?;
            call(client, effect, "FCALL", all_args()).await
        }
        result => result,
    }
}
