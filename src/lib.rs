//! Headwater: a persistent Server-Sent-Events broker. A channel is a stream, publishing is one atomic append,
//! and a browser that reconnects gets exactly what it missed.

pub mod channel;
pub mod clock;
pub mod config;
pub mod cursor;
pub mod event;
pub mod fanout;
pub mod http;
pub mod id;
pub mod lifecycle;
pub mod log;
pub mod pattern;
pub mod publish;
pub mod session;
pub mod sse;
pub mod tailer;
pub mod telemetry;
