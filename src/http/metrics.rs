//! `GET /metrics`, and what the HTTP side counts itself: sockets and refusals.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header;
use tokio_util::task::TaskTracker;

use super::App;
use super::problem::Code;
use super::waiting::Waiting;
use crate::metrics::{Counter, Counters, Label, Metrics, Registry, label, observe};

impl Label for Code {
    const NAME: &'static str = "code";
    const ALL: &'static [Self] = Self::ALL;

    fn value(self) -> &'static str {
        self.as_str()
    }
}

/// What became of TLS handshakes. Those that begin and do nothing else were broken off by the client, or made room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Handshake {
    Begun,
    Finished,
    /// The two do not get on, or what came is no TLS.
    Failed,
    /// Not finished within `server.header_timeout`.
    TimedOut,
}

label!(Handshake, "outcome", Begun => "begun", Finished => "finished", Failed => "failed", TimedOut => "timed_out");

/// Counters of the HTTP side. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct HttpMetrics {
    /// The tasks that serve connections, one each.
    pub(super) connections: TaskTracker,
    /// Those that have not sent a whole head yet.
    pub(super) waiting: Arc<Waiting>,
    pub(super) accepted: Counter,
    pub(super) handshakes: Counters<Handshake>,
    refusals: Counters<Code>,
}

impl HttpMetrics {
    /// Registers what is counted.
    pub fn register(&self, registry: &mut Registry) {
        let Self { connections, waiting, accepted, handshakes, refusals } = self.clone();
        waiting.register(registry);
        observe(registry, "connections", "Open sockets of clients", move || connections.len());
        registry.register("connections_accepted", "Sockets of clients that were accepted", accepted);
        registry.register("tls_handshakes", "TLS handshakes, by what became of them", handshakes);
        registry.register(
            "refusals",
            "Requests that were refused or failed, by the code of the answer",
            refusals,
        );
    }
}

/// Marks an answer as a refusal, whatever its status.
pub(super) fn mark(response: &mut Response, code: Code) {
    response.extensions_mut().insert(code);
}

/// Counts answers that are refusals.
pub(super) async fn count_refusals(
    State(metrics): State<HttpMetrics>,
    request: Request,
    next: Next,
) -> Response {
    let response = next.run(request).await;
    if let Some(code) = response.extensions().get::<Code>() {
        metrics.refusals.of(*code).inc();
    }
    response
}

/// `GET /metrics`.
pub(super) async fn metrics(State(app): State<Arc<App>>) -> Response {
    ([(header::CONTENT_TYPE, Metrics::CONTENT_TYPE)], app.metrics.encode()).into_response()
}
