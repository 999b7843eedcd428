//! HTTP: the broker's outside. Nothing below this module knows axum or hyper.
//!
//! One request goes `listener` -> `connection` -> CORS -> `guard` -> a handler (`subscribe`, `publish`, `manage`) -> an answer,
//! a [`problem::Problem`], or an event stream: a `stream` that hyper writes, or a socket that is taken back from it
//! (`handover`) and written by the session itself (`detached`, `framing`).

mod connection;
mod detached;
mod framing;
mod guard;
mod handover;
pub mod listener;
mod manage;
pub mod metrics;
pub mod problem;
mod publish;
mod query;
mod socket;
mod stream;
mod subscribe;
mod transport;
mod unread;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{FromRequestParts, Path, Request};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use serde::Serialize;
use tokio::net::TcpListener;
use tower_http::cors::{AllowOrigin, CorsLayer};

use self::listener::ListenerOptions;
use self::metrics::HttpMetrics;
use self::problem::{Code, Problem};
pub use self::publish::Bodies;
use crate::channel::Channel;
use crate::config::cors::AllowedOrigins;
use crate::fanout::Hub;
use crate::lifecycle::Scope;
use crate::log::Log;
use crate::log::retention::RetentionRules;
use crate::metrics::Metrics;
use crate::publish::Publisher;
use crate::session::SessionOptions;
use crate::sse::ClosingReason;
use crate::tailer::Pulse;

/// How long a browser may remember the answer to a preflight.
const PREFLIGHT_MAX_AGE: Duration = Duration::from_secs(600);

const NO_SUCH_PATH: &str = "there are /events, /cursor, /channels, /channels/{channel}, /channels/{channel}/events, \
     /healthz, /readyz and /metrics; try GET /events?channels=demo";

/// What handlers share.
pub struct App {
    /// The store.
    pub log: Arc<dyn Log>,
    /// Topics and sessions.
    pub hub: Arc<Hub>,
    /// The way to the log.
    pub publisher: Publisher,
    /// Memory for the bodies of publishes.
    pub bodies: Bodies,
    /// Signs of life of the tailers.
    pub pulses: Vec<Arc<Pulse>>,
    /// Tells when the node leaves.
    pub scope: Scope,
    /// What everybody counts.
    pub metrics: Metrics,
    /// What this side counts.
    pub http_metrics: HttpMetrics,
    /// Settings.
    pub options: AppOptions,
}

/// Settings of the HTTP side.
pub struct AppOptions {
    /// Of every session.
    pub session: Arc<SessionOptions>,
    /// Limits of publishing.
    pub publish: crate::config::publish::Publish,
    /// What channels keep.
    pub retention: RetentionRules,
    /// Streams that the node carries.
    pub connections_max: usize,
    /// Channels of one stream.
    pub channels_per_connection: usize,
    /// Pages of other origins.
    pub allowed_origins: AllowedOrigins,
    /// Serve only programs and pages of this machine.
    pub loopback_only: bool,
    /// What `readyz` calls the store.
    pub log_name: &'static str,
    /// Of connections.
    pub listener: ListenerOptions,
}

impl App {
    /// Why no further stream is taken, if none is.
    fn refusal(&self) -> Option<ClosingReason> {
        if self.scope.soft().is_cancelled() {
            return Some(ClosingReason::Unavailable);
        }
        (self.hub.sessions() >= self.options.connections_max).then_some(ClosingReason::Overloaded)
    }

    fn tailers_are_stuck(&self) -> bool {
        self.pulses.iter().any(|pulse| pulse.is_stuck())
    }
}

/// Serves until the drain begins.
pub async fn serve(listener: TcpListener, app: Arc<App>) {
    let (options, scope, metrics) = (app.options.listener, app.scope.clone(), app.http_metrics.clone());
    listener::serve(listener, router(app), options, scope, metrics).await;
}

/// All routes.
pub fn router(app: Arc<App>) -> Router {
    let allowed = Arc::new(app.options.allowed_origins.clone());
    let router = Router::new()
        .route("/events", get(subscribe::subscribe).post(publish::publish_many))
        .route("/cursor", get(subscribe::cursor))
        .route("/channels", get(manage::list))
        .route("/channels/{channel}", get(manage::info).delete(manage::purge))
        .route("/channels/{channel}/events", get(manage::history).post(publish::publish_to_channel))
        .route("/channels/{channel}/adopt", post(manage::adopt))
        .route("/healthz", get(manage::healthz))
        .route("/readyz", get(manage::readyz))
        .route("/metrics", get(metrics::metrics))
        .fallback(|| async { Problem::new(Code::NotFound, NO_SUCH_PATH) })
        .layer(from_fn(explain_method));
    let (loopback_only, http_metrics) = (app.options.loopback_only, app.http_metrics.clone());
    let router = router.with_state(app);
    let router = if loopback_only {
        router.layer(from_fn_with_state(Arc::clone(&allowed), guard::loopback_only))
    } else {
        router
    };
    let count_refusals = from_fn_with_state(http_metrics, metrics::count_refusals);
    let router = router.layer(from_fn(guard::limited_head)).layer(cors(&allowed)).layer(count_refusals);
    router.layer(from_fn(unread::announce_close))
}

/// Gives the 405 of the router a body, and keeps its `Allow`.
async fn explain_method(request: Request, next: Next) -> Response {
    let method = request.method().clone();
    let response = next.run(request).await;
    if response.status() != StatusCode::METHOD_NOT_ALLOWED {
        return response;
    }
    let allow = response.headers().get(header::ALLOW).cloned();
    let detail = format!("the path does not take {method}; the Allow header tells what it takes");
    let mut response = Problem::new(Code::MethodNotAllowed, detail).into_response();
    response.headers_mut().extend(allow.map(|allow| (header::ALLOW, allow)));
    response
}

fn cors(allowed: &AllowedOrigins) -> CorsLayer {
    let headers = [
        header::AUTHORIZATION,
        header::CONTENT_TYPE,
        header::CACHE_CONTROL,
        HeaderName::from_static("last-event-id"),
        HeaderName::from_static("idempotency-key"),
    ];
    let layer = CorsLayer::new()
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::DELETE])
        .allow_headers(headers)
        .expose_headers([header::RETRY_AFTER])
        .max_age(PREFLIGHT_MAX_AGE);
    match allowed {
        AllowedOrigins::Any => layer.allow_origin(tower_http::cors::Any),
        AllowedOrigins::Listed(origins) => {
            let listed = origins.iter().filter_map(|origin| HeaderValue::from_str(origin.as_str()).ok());
            layer.allow_origin(AllowOrigin::list(listed)).allow_credentials(true)
        }
    }
}

/// The channel named by the path; `%2F` is a slash within the name.
struct ChannelPath(Channel);

impl<S: Send + Sync> FromRequestParts<S> for ChannelPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path(name) = Path::<String>::from_request_parts(parts, state).await.map_err(|_| {
            Problem::new(Code::InvalidChannel, "the channel in the path is no percent-encoded UTF-8")
        })?;
        Ok(Self(Channel::parse(&name)?))
    }
}

fn json_response(status: StatusCode, body: &impl Serialize) -> Response {
    let mut body = serde_json::to_string(body).expect("answers have string keys and checked JSON");
    // For people at a terminal.
    body.push('\n');
    let mut response = (status, body).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
