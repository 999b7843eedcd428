//! Bodies on their way in: memory for all of them together is bounded.
//!
//! Invariant: a body takes room for what has arrived of it, before more is read, and keeps it until its events are
//! published; where there is none left, it is refused. Nobody waits for room, because those who hold it may
//! all be waiting for more. What hyper has read ahead of a connection is not counted, nor is as much of every body:
//! small publishes go on when large ones fill the room.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::super::problem::{Code, Problem};
use crate::config::publish::Publish;
use crate::metrics::{Registry, observe};

/// Room for all bodies, unless that is less than a few of the largest.
const ROOM_BYTES_MIN: usize = 64 * 1024 * 1024;
/// So many of the largest bodies fit at once.
const LARGEST_BODIES: usize = 4;
/// Not counted of any body.
const FREE_BYTES: usize = 8 * 1024;
/// Unit of the room.
const PERMIT_BYTES: usize = 1024;

/// JSON may escape a character with six bytes.
const ESCAPE_FACTOR: usize = 6;
/// Room for everything in a body beside its data.
const BODY_OVERHEAD_BYTES: usize = 64 * 1024;
/// For a body that is published as a whole, and for a silence of an NDJSON stream, which otherwise may take its time.
pub(super) const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// What a body that is too large is refused with, and why it is too large.
pub(super) type TooLarge = (Code, &'static str);
pub(super) const EVENT: TooLarge =
    (Code::DataTooLarge, "which data within publish.event_bytes_max never needs");
pub(super) const ARRAY: TooLarge = (Code::BatchTooLarge, "publish.batch_bytes_max");
pub(super) const DOCUMENT: TooLarge = (Code::BatchTooLarge, "which this call never needs");

/// Memory for the bodies of a node. Clones share it.
#[derive(Clone, Debug)]
pub struct Bodies {
    room: Arc<Semaphore>,
    permits: usize,
}

/// What one body holds of the room; given back when it is dropped.
pub(super) struct Held {
    bodies: Bodies,
    permit: Option<OwnedSemaphorePermit>,
}

impl Bodies {
    /// Room for what these limits allow.
    pub fn new(limits: &Publish) -> Self {
        let largest = limits.batch_bytes_max.max(single_bytes_max(limits));
        let permits = ROOM_BYTES_MIN.max(LARGEST_BODIES * largest) / PERMIT_BYTES;
        Self { room: Arc::new(Semaphore::new(permits)), permits }
    }

    /// Registers how much is taken.
    pub fn register(&self, registry: &mut Registry) {
        let Self { room, permits } = self.clone();
        let taken = move || permits.saturating_sub(room.available_permits()) * PERMIT_BYTES;
        let help = "Bytes of request bodies that are being read, or whose events are being published";
        observe(registry, "request_body_bytes", help, taken);
    }

    /// For a body of which nothing has arrived.
    pub(super) fn hold(&self) -> Held {
        Held { bodies: self.clone(), permit: None }
    }

    /// Reads a body of an event or an array to its end.
    pub(super) async fn read(
        &self,
        body: Body,
        bytes_max: usize,
        too_large: TooLarge,
    ) -> Result<(Bytes, Held), Problem> {
        let Ok(read) = timeout(BODY_TIMEOUT, self.read_whole(body, bytes_max, too_large)).await else {
            let detail = format!("the body did not arrive within {} s", BODY_TIMEOUT.as_secs());
            return Err(Problem::new(Code::RequestTimeout, detail));
        };
        read
    }

    async fn read_whole(
        &self,
        body: Body,
        bytes_max: usize,
        (code, because): TooLarge,
    ) -> Result<(Bytes, Held), Problem> {
        let (mut frames, mut whole, mut held) = (body.into_data_stream(), BytesMut::new(), self.hold());
        while let Some(frame) = frames.next().await {
            let frame = frame
                .map_err(|error| Problem::new(Code::InvalidBody, format!("the body ended early: {error}")))?;
            if whole.len() + frame.len() > bytes_max {
                return Err(Problem::new(code, format!("the body exceeds {bytes_max} bytes, {because}")));
            }
            held.resize(whole.len() + frame.len())?;
            whole.extend_from_slice(&frame);
        }
        Ok((whole.freeze(), held))
    }
}

impl Held {
    /// Holds room for so many bytes from now on.
    ///
    /// # Errors
    /// When there is not so much left; what was held stays so.
    pub(super) fn resize(&mut self, bytes: usize) -> Result<(), Problem> {
        let wanted = bytes.saturating_sub(FREE_BYTES).div_ceil(PERMIT_BYTES);
        let held = self.permit.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        if wanted <= held {
            let surplus = self.permit.as_mut().and_then(|permit| permit.split(held - wanted));
            drop(surplus);
            return Ok(());
        }
        let more = u32::try_from(wanted - held).map_err(|_| full())?;
        let more = Arc::clone(&self.bodies.room).try_acquire_many_owned(more).map_err(|_| full())?;
        match &mut self.permit {
            Some(permit) => permit.merge(more),
            None => self.permit = Some(more),
        }
        Ok(())
    }
}

fn full() -> Problem {
    let detail = "the bodies of the publishes under way take all the memory that is set aside for them; try again later";
    Problem::new(Code::Overloaded, detail)
        .retry_after(Duration::from_secs(1))
        .with("outcome", "not_published")
}

/// Bytes of a JSON body with one event, or of one line.
pub(super) fn single_bytes_max(limits: &Publish) -> usize {
    limits.event_bytes_max * ESCAPE_FACTOR + BODY_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    /// Seen to fail without the time limit, and with room that is kept after it.
    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_end_in_time_is_refused_and_gives_its_room_back() {
        let bodies = Bodies::new(&Publish {
            event_bytes_max: 1 << 18,
            batch_events_max: 1_000,
            batch_bytes_max: 1 << 22,
            idempotency_window: Duration::from_secs(600),
        });
        let begun = stream::iter([Ok::<_, std::io::Error>(Bytes::from(vec![b' '; 100_000]))]);
        let body = Body::from_stream(begun.chain(stream::pending()));
        let (answer, ()) = tokio::join!(bodies.read(body, 200_000, ARRAY), async {
            tokio::time::sleep(BODY_TIMEOUT / 2).await;
            assert!(bodies.room.available_permits() < bodies.permits, "what has come is held");
        });
        let problem = answer.err().expect("it is refused");
        assert_eq!(problem.code(), Code::RequestTimeout);
        assert_eq!(bodies.room.available_permits(), bodies.permits);
    }
}
