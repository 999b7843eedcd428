//! Headwater: a persistent Server-Sent-Events broker.
//!
//! A channel is a log, publishing is one atomic append, and a client that comes back with the id of the last
//! event it saw gets exactly what it missed.
//!
//! ```text
//!  publisher --HTTP--> publish --append--> log --follow--> tailer --release--> topics --> session --> client
//!                                           ^                                   (rings)      |
//!                                           +----------------- pages (replay) ---------------+
//! ```
//!
//! # Glossary
//!
//! | word | meaning |
//! |---|---|
//! | channel | a named log of events; `$user:<id>` and `$conn:<id>` are system channels, never addressed by name from outside |
//! | event | one immutable record in a channel: id, type, data, retry, skip list |
//! | partition | a set of channels with one total order |
//! | feed | one small stream per partition that lists in order which channel each event went to; an entry of it is a *ref* |
//! | epoch | per partition, the id at which its history last began: creation, flush, rollback |
//! | log | the port to storage; its adapters are `redis` and `embedded` |
//! | tailer | the node's one task per partition that follows the feed and releases what is new to the topics |
//! | watermark | the highest feed id up to which the tailer has released everything |
//! | topic | a channel as one node holds it: a bounded ring of frames and the sessions that listen |
//! | frame | an event encoded once, shared by every session on the node |
//! | session | one subscriber: channels, filter, position, and a state machine |
//! | page | a stretch of a channel's history, read from the log for sessions that replay it |
//! | cursor | the position a client resumes from; what goes into `id:` |
//! | gap | what a client is told where history after its cursor cannot be proven whole |

// Groups in reading order: what there is, where it is kept, how it moves, how it is served, how it is run.
pub mod channel;
pub mod cursor;
pub mod event;
pub mod id;
pub mod pattern;

pub mod log;

pub mod fanout;
pub mod publish;
pub mod session;
pub mod sse;
pub mod tailer;

pub mod auth;
pub mod control;
pub mod limits;

pub mod http;

pub mod backoff;
pub mod broker;
pub mod clock;
pub mod config;
pub mod lifecycle;
pub mod metrics;
pub mod telemetry;

#[cfg(any(test, fuzzing))]
pub mod fuzzing;
