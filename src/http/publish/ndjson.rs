//! NDJSON: a stream of items, one a line, published in order in chunks while it is read.
//!
//! Invariant: memory is bounded by one chunk and one line, however long the stream; what is published before a
//! bad line stays, and the answer says how many that were.

use std::sync::Arc;

use axum::body::{Body, BodyDataStream};
use axum::response::Response;
use bytes::BytesMut;
use futures_util::{FutureExt, StreamExt};
use http::StatusCode;
use serde_json::json;

use super::super::{App, json_response};
use super::item::{Limits, parse_item};
use super::{BODY_OVERHEAD_BYTES, Code, ESCAPE_FACTOR, Failed, Problem, publish_items, utf8};
use crate::id::EventId;
use crate::log::AppendItem;

/// Bytes of data in one chunk.
const CHUNK_BYTES: usize = 512 * 1024;

/// `POST /events` with `application/x-ndjson`.
pub(super) async fn publish_stream(app: &Arc<App>, body: Body) -> Result<Response, Problem> {
    let mut publishing = Publishing::new(app);
    let mut lines =
        Lines::new(body, app.options.publish.event_bytes_max * ESCAPE_FACTOR + BODY_OVERHEAD_BYTES);
    loop {
        let next = match lines.next_buffered() {
            Some(line) => Ok(Some(line)),
            // Nothing more has arrived: publish what there is instead of waiting for a full chunk.
            None => match lines.fill().now_or_never() {
                Some(filled) => filled.map(|more| more.then(BytesMut::new)),
                None => {
                    publishing.flush().await?;
                    lines.fill().await.map(|more| more.then(BytesMut::new))
                }
            },
        };
        match next {
            Ok(Some(line)) => publishing.take(&line, lines.number).await?,
            Ok(None) => break,
            Err(problem) => return Err(publishing.stop(problem, lines.number + 1).await),
        }
    }
    publishing.finish().await
}

/// What has been published of a stream, and what waits.
struct Publishing<'a> {
    app: &'a App,
    limits: Limits<'a>,
    waiting: Vec<AppendItem>,
    waiting_bytes: usize,
    first_waiting_line: u64,
    published: usize,
    duplicates: usize,
    last_id: Option<EventId>,
}

impl<'a> Publishing<'a> {
    fn new(app: &'a App) -> Self {
        Self {
            app,
            limits: Limits::of(app),
            waiting: Vec::new(),
            waiting_bytes: 0,
            first_waiting_line: 1,
            published: 0,
            duplicates: 0,
            last_id: None,
        }
    }

    async fn take(&mut self, line: &[u8], number: u64) -> Result<(), Problem> {
        if line.iter().all(u8::is_ascii_whitespace) {
            return Ok(());
        }
        let item = match utf8(line).and_then(|line| parse_item(line, &self.limits)) {
            Ok(item) => item,
            Err(problem) => return Err(self.stop(problem, number).await),
        };
        if self.waiting.is_empty() {
            self.first_waiting_line = number;
        }
        self.waiting_bytes += item.draft.data.bytes().len();
        self.waiting.push(item);
        let full = self.waiting.len() >= self.app.options.publish.batch_events_max;
        if full || self.waiting_bytes >= CHUNK_BYTES { self.flush().await } else { Ok(()) }
    }

    async fn flush(&mut self) -> Result<(), Problem> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        self.waiting_bytes = 0;
        let items = std::mem::take(&mut self.waiting);
        match publish_items(self.app, items).await {
            Ok(published) => {
                let duplicates = published.iter().filter(|p| p.duplicate).count();
                self.duplicates += duplicates;
                self.published += published.len() - duplicates;
                self.last_id = published.last().map(|p| p.id).or(self.last_id);
                Ok(())
            }
            Err(Failed { error, published }) => {
                let published = self.published + published;
                let failed = Failed { error, published }.into_problem();
                Err(failed.with("published", published).with("line", self.first_waiting_line))
            }
        }
    }

    /// Publishes what came before a bad line, then reports the line.
    async fn stop(&mut self, problem: Problem, line: u64) -> Problem {
        match self.flush().await {
            Ok(()) => problem.with("line", line).with("published", self.published),
            Err(failed) => failed,
        }
    }

    async fn finish(mut self) -> Result<Response, Problem> {
        self.flush().await?;
        let last_id = self.last_id.map(|id| id.to_string());
        let answer = json!({"published": self.published, "duplicates": self.duplicates, "last_id": last_id});
        Ok(json_response(StatusCode::OK, &answer))
    }
}

/// The lines of a body.
struct Lines {
    body: BodyDataStream,
    buffer: BytesMut,
    searched: usize,
    ended: bool,
    line_bytes_max: usize,
    /// Of the line answered last, from 1.
    number: u64,
}

impl Lines {
    fn new(body: Body, line_bytes_max: usize) -> Self {
        let body = body.into_data_stream();
        Self { body, buffer: BytesMut::new(), searched: 0, ended: false, line_bytes_max, number: 0 }
    }

    /// The next line that has arrived whole; the last one needs no line break.
    fn next_buffered(&mut self) -> Option<BytesMut> {
        let found = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n');
        let Some(at) = found.map(|at| self.searched + at) else {
            self.searched = self.buffer.len();
            if self.ended && !self.buffer.is_empty() {
                self.number += 1;
                self.searched = 0;
                return Some(self.buffer.split());
            }
            return None;
        };
        let mut line = self.buffer.split_to(at + 1);
        line.truncate(at);
        self.searched = 0;
        self.number += 1;
        Some(line)
    }

    /// Waits for more of the body. Answers false at its end.
    async fn fill(&mut self) -> Result<bool, Problem> {
        if self.buffer.len() > self.line_bytes_max {
            let detail = format!("a line exceeds {} bytes", self.line_bytes_max);
            return Err(Problem::new(Code::DataTooLarge, detail));
        }
        match self.body.next().await {
            Some(Ok(bytes)) => {
                self.buffer.extend_from_slice(&bytes);
                Ok(true)
            }
            Some(Err(error)) => {
                Err(Problem::new(Code::InvalidBody, format!("the body ended early: {error}")))
            }
            None => {
                let more = !self.ended && !self.buffer.is_empty();
                self.ended = true;
                Ok(more)
            }
        }
    }
}
