//! NDJSON: a stream of items, one a line, published in order in chunks while it is read.
//!
//! While the log works on one chunk the next gathers, so that chunks grow as large as the log is slow. Invariant:
//! memory is bounded by two chunks and one line, however long the stream, and for all streams together (`body.rs`); a
//! chunk is handed over only when the one before is known to be published, so what is published before a bad line
//! stays, nothing after it follows, and the answer says how many that were; a stream that says nothing ends with the right
//! to it, or when it has been silent for too long.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, BodyDataStream};
use axum::response::Response;
use bytes::BytesMut;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use http::StatusCode;
use serde_json::json;
use tokio::time::{Instant, sleep, timeout_at};

use super::super::{App, json_response};
use super::body::{BODY_TIMEOUT, Held, single_bytes_max};
use super::item::{Limits, parse_item};
use super::{Code, Failed, Problem, publish_items, utf8};
use crate::auth::{Caller, Rejection};
use crate::clock;
use crate::id::EventId;
use crate::limits::{Refused, Source};
use crate::log::AppendItem;
use crate::publish::Published;

/// Bytes of data in one chunk.
const CHUNK_BYTES: usize = 512 * 1024;

/// `POST /events` with `application/x-ndjson`.
pub(super) async fn publish_stream(
    app: &Arc<App>,
    caller: &Caller,
    source: Source,
    body: Body,
) -> Result<Response, Problem> {
    if !caller.may_publish_anywhere() {
        return Err(Problem::new(Code::Forbidden, "the token allows to publish to no channel at all"));
    }
    // Most of the time a stream waits for its client.
    let mut right_ended = pin!(app.access.ended(caller));
    let mut publishing = Publishing::new(app, caller, source);
    let mut lines = Lines::new(body, single_bytes_max(&app.options.publish));
    loop {
        while let Some(line) = lines.next_buffered() {
            publishing.take(&line, lines.number).await?;
        }
        publishing.make_room(lines.buffer.len(), lines.number + 1).await?;
        if publishing.under_way.is_none() {
            // The log has nothing to do: it gets what there is.
            publishing.flush().await?;
        }
        let filled = tokio::select! {
            settled = publishing.settle(), if publishing.under_way.is_some() => {
                settled?;
                continue;
            }
            ended = &mut right_ended => return Err(publishing.abandon(ended, lines.number + 1).await),
            filled = lines.fill() => filled,
        };
        match filled {
            Ok(true) => {}
            Ok(false) => break,
            Err(problem) => return Err(publishing.stop(problem, lines.number + 1).await),
        }
    }
    publishing.finish().await
}

/// What has been published of a stream, what the log works on, and what waits.
struct Publishing<'a> {
    app: &'a App,
    caller: &'a Caller,
    source: Source,
    /// Of one chunk: no more than may be published at once.
    events_max: usize,
    limits: Limits<'a>,
    waiting: Vec<AppendItem>,
    waiting_bytes: usize,
    held: Held,
    first_waiting_line: u64,
    under_way: Option<UnderWay<'a>>,
    published: usize,
    duplicates: usize,
    last_id: Option<EventId>,
}

/// A chunk that the log works on.
struct UnderWay<'a> {
    call: BoxFuture<'a, Result<Vec<Published>, Failed>>,
    first_line: u64,
    bytes: usize,
}

impl<'a> Publishing<'a> {
    fn new(app: &'a App, caller: &'a Caller, source: Source) -> Self {
        let burst = app.limits.publish_burst().map_or(usize::MAX, |burst| burst as usize);
        Self {
            app,
            caller,
            source,
            events_max: app.options.publish.batch_events_max.min(burst),
            limits: Limits::of(app, caller),
            waiting: Vec::new(),
            waiting_bytes: 0,
            held: app.bodies.hold(),
            first_waiting_line: 1,
            under_way: None,
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
        let full = self.waiting.len() >= self.events_max;
        if full || self.waiting_bytes >= CHUNK_BYTES { self.flush().await } else { Ok(()) }
    }

    /// Accounts for what is in memory, and for `unparsed` bytes of the line that has not arrived whole.
    async fn make_room(&mut self, unparsed: usize, line: u64) -> Result<(), Problem> {
        loop {
            let under_way = self.under_way.as_ref().map_or(0, |under_way| under_way.bytes);
            let parsed = self.waiting_bytes + under_way;
            match self.held.resize(parsed + unparsed) {
                Ok(()) => return Ok(()),
                // What is published takes no room any more.
                Err(_) if parsed > 0 => self.flush_and_settle().await?,
                Err(problem) => {
                    let problem = self.stop(problem, line).await;
                    let partly = self.published > 0;
                    return Err(if partly { problem.with("outcome", "partial") } else { problem });
                }
            }
        }
    }

    /// Hands what waits to the log, once that is done with the chunk before.
    async fn flush(&mut self) -> Result<(), Problem> {
        self.settle().await?;
        if self.waiting.is_empty() {
            return Ok(());
        }
        self.pace().await;
        // A stream may outlast the right to it.
        if let Err(ended) = self.app.access.still_valid(self.caller, clock::unix_ms()) {
            return Err(self.abandon(ended, self.first_waiting_line).await);
        }
        let bytes = std::mem::take(&mut self.waiting_bytes);
        let items = std::mem::take(&mut self.waiting);
        let call = Box::pin(publish_items(self.app, items));
        self.under_way = Some(UnderWay { call, first_line: self.first_waiting_line, bytes });
        // A call begins when it is first looked at.
        std::future::poll_fn(|cx| match self.poll_settled(cx) {
            Poll::Ready(Err(problem)) => Poll::Ready(Err(problem)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(())),
        })
        .await
    }

    /// Waits until the chunk under way, if there is one, is published. Nothing is lost when this is dropped.
    async fn settle(&mut self) -> Result<(), Problem> {
        std::future::poll_fn(|cx| self.poll_settled(cx)).await
    }

    fn poll_settled(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Problem>> {
        let Some(under_way) = &mut self.under_way else { return Poll::Ready(Ok(())) };
        let result = std::task::ready!(under_way.call.as_mut().poll(cx));
        let first_line = under_way.first_line;
        self.under_way = None;
        Poll::Ready(self.count(result, first_line))
    }

    fn count(&mut self, result: Result<Vec<Published>, Failed>, first_line: u64) -> Result<(), Problem> {
        match result {
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
                Err(failed.with("published", published).with("line", first_line))
            }
        }
    }

    /// Waits as long as the publisher is too fast; meanwhile its socket is not read.
    async fn pace(&mut self) {
        let account = self.caller.account();
        while let Err(Refused::Limited { retry_after, .. }) =
            self.app.limits.publish(account.as_deref(), self.source, self.waiting.len())
        {
            sleep(retry_after).await;
        }
    }

    /// Publishes what came before a bad line, then reports the line.
    async fn stop(&mut self, problem: Problem, line: u64) -> Problem {
        match self.flush_and_settle().await {
            Ok(()) => problem.with("line", line).with("published", self.published),
            Err(failed) => failed,
        }
    }

    /// Throws away what waits, since the right to publish it has ended; `line` is the next one where nothing does.
    async fn abandon(&mut self, ended: Rejection, line: u64) -> Problem {
        // What the log works on was handed over in time.
        if let Err(failed) = self.settle().await {
            return failed;
        }
        let line = if self.waiting.is_empty() { line } else { self.first_waiting_line };
        self.waiting.clear();
        Problem::from(ended).with("line", line).with("published", self.published)
    }

    async fn flush_and_settle(&mut self) -> Result<(), Problem> {
        self.flush().await?;
        self.settle().await
    }

    async fn finish(mut self) -> Result<Response, Problem> {
        self.flush_and_settle().await?;
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
    /// Since when the client is waited for.
    silent_since: Option<Instant>,
    line_bytes_max: usize,
    /// Of the line answered last, from 1.
    number: u64,
}

impl Lines {
    fn new(body: Body, line_bytes_max: usize) -> Self {
        let body = body.into_data_stream();
        Self {
            body,
            buffer: BytesMut::new(),
            searched: 0,
            ended: false,
            silent_since: None,
            line_bytes_max,
            number: 0,
        }
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

    /// Waits for more of the body. Answers false when no line can follow. Nothing is lost when this is dropped.
    async fn fill(&mut self) -> Result<bool, Problem> {
        if self.ended {
            return Ok(false);
        }
        if self.buffer.len() > self.line_bytes_max {
            let detail = format!("a line exceeds {} bytes", self.line_bytes_max);
            return Err(Problem::new(Code::DataTooLarge, detail));
        }
        let since = *self.silent_since.get_or_insert_with(Instant::now);
        // What has arrived counts, however late anybody comes to look.
        let Ok(next) = timeout_at(since + BODY_TIMEOUT, self.body.next()).await else {
            let detail = format!(
                "nothing arrived for {} s; send a space now and then while there is nothing to publish",
                BODY_TIMEOUT.as_secs()
            );
            return Err(Problem::new(Code::RequestTimeout, detail));
        };
        self.silent_since = None;
        match next {
            Some(Ok(bytes)) => {
                self.buffer.extend_from_slice(&bytes);
                Ok(true)
            }
            Some(Err(error)) => {
                Err(Problem::new(Code::InvalidBody, format!("the body ended early: {error}")))
            }
            None => {
                self.ended = true;
                Ok(!self.buffer.is_empty())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::time::Duration;

    use futures_util::stream;

    use super::*;

    /// Says `said` after so many seconds each, then nothing for ever.
    fn lines_of(said: &'static [(u64, &'static str)]) -> Lines {
        let said = stream::iter(said).then(|(seconds, text)| async {
            sleep(Duration::from_secs(*seconds)).await;
            Ok::<_, Infallible>(*text)
        });
        Lines::new(Body::from_stream(said.chain(stream::pending())), 100)
    }

    /// Seen to fail without a limit, with one for the whole body, and with one that begins anew whenever the wait is given
    /// up for something else.
    #[tokio::test(start_paused = true)]
    async fn a_stream_may_last_but_not_be_silent() {
        let began = Instant::now();
        let mut lines = lines_of(&[(29, "{}\n"), (29, " "), (29, "\n"), (29, "{")]);
        for seconds in [29, 58, 87, 116] {
            assert!(lines.fill().await.unwrap());
            assert_eq!(began.elapsed().as_secs(), seconds);
        }
        // As while chunks are published meanwhile.
        for _ in 0..2 {
            tokio::select! {
                _ = lines.fill() => panic!("nobody said anything"),
                () = sleep(Duration::from_secs(10)) => {}
            }
        }
        assert_eq!(lines.fill().await.unwrap_err().code(), Code::RequestTimeout);
        assert_eq!(began.elapsed().as_secs(), 146);
    }

    /// Seen to fail when the time is looked at before the body.
    #[tokio::test(start_paused = true)]
    async fn what_arrived_while_nobody_looked_is_not_late() {
        let mut lines = lines_of(&[(1, "{}\n")]);
        tokio::select! {
            _ = lines.fill() => panic!("nobody said anything yet"),
            () = sleep(Duration::from_millis(1)) => {}
        }
        sleep(Duration::from_secs(100)).await;
        assert!(lines.fill().await.unwrap());
    }
}
