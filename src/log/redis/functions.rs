//! The function libraries: their sources, and loading them where a server has none.
//!
//! Invariant: a library with a version in its name never changes once released; a change is a new library
//! beside it, so that two releases work side by side. A server that holds another text under that name is refused.

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
static LIBRARIES: [Library; 2] = [
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
    async fn state(&self, client: &Client) -> Result<LibraryState, LogError> {
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
enum LibraryState {
    Missing,
    Loaded,
    Different,
}

/// What has to be done with a library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Load,
    Replace,
}

/// What loading would do. `newest` says that no newer layout is known, so that the unversioned library is ours.
pub(super) async fn plan(client: &Client, newest: bool) -> Result<Vec<(&'static Library, Change)>, LogError> {
    let mut changes = Vec::new();
    for library in &LIBRARIES {
        match library.state(client).await? {
            LibraryState::Missing => changes.push((library, Change::Load)),
            LibraryState::Different if library.replaceable && newest => {
                changes.push((library, Change::Replace));
            }
            LibraryState::Different if !library.replaceable => {
                return Err(LogError::Damaged(format!(
                    "the function library {0} in Redis is not the released one; remove it with \
                     FUNCTION DELETE {0} if no broker needs it",
                    library.name
                )));
            }
            LibraryState::Different | LibraryState::Loaded => {}
        }
    }
    Ok(changes)
}

/// Loads what is missing.
pub(super) async fn load_missing(client: &Client, newest: bool) -> Result<(), LogError> {
    for (library, change) in plan(client, newest).await? {
        library.load(client, change == Change::Replace).await?;
        tracing::info!(library = library.name, "a function library was loaded");
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
