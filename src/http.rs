//! HTTP: the broker's outside. Nothing below this module knows axum or hyper.
//!
//! One request goes `listener` -> `connection` -> CORS -> `guard` -> `routes` -> `access` -> a handler (`subscribe`,
//! `publish`, `manage`) -> an answer, a [`problem::Problem`], or an event stream: a `stream` that hyper writes, or a socket
//! that is taken back from it (`handover`) and written by the session itself (`detached`, `framing`).

mod access;
mod connection;
mod detached;
mod framing;
mod guard;
mod handover;
pub mod listener;
mod manage;
pub mod metrics;
mod origin;
mod peer;
pub mod problem;
mod publish;
mod query;
mod revocations;
mod routes;
mod secure;
mod socket;
mod stream;
mod subscribe;
mod tls;
mod transport;
mod unread;
mod waiting;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{FromRequestParts, Path, Request};
use axum::middleware::{Next, from_fn, from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use ipnet::IpNet;
use serde::Serialize;
use tokio::net::TcpListener;
use tower::ServiceBuilder;
use tower_http::cors::{AllowOrigin, CorsLayer};

pub use self::access::Needs;
use self::listener::ListenerOptions;
use self::metrics::HttpMetrics;
use self::problem::{Code, Problem};
pub use self::publish::Bodies;
pub use self::routes::Route;
use self::routes::Routes;
pub use self::tls::{Certificate, Tls};
use crate::auth::Access;
use crate::channel::Channel;
use crate::config::cors::AllowedOrigins;
use crate::control::Controller;
use crate::fanout::Hub;
use crate::lifecycle::Scope;
use crate::limits::Limits;
use crate::log::Log;
use crate::log::retention::RetentionRules;
use crate::metrics::Metrics;
use crate::publish::Publisher;
use crate::session::SessionOptions;
use crate::tailer::Pulse;

/// How long a browser may remember the answer to a preflight.
const PREFLIGHT_MAX_AGE: Duration = Duration::from_secs(600);

const NO_SUCH_PATH: &str = "there are /events, /events/authenticated, /cursor, /channels, /channels/{channel}, \
     /channels/{channel}/events, /revocations, /healthz, /readyz and /metrics; try GET /events?channels=demo";

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
    /// Knows whom a request comes from.
    pub access: Arc<Access>,
    /// What one caller may take.
    pub limits: Arc<Limits>,
    /// Reaches every node.
    pub controller: Arc<Controller>,
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
    /// Who may say for whom they pass requests on.
    pub trusted_proxies: Vec<IpNet>,
    /// Channels of one stream.
    pub channels_per_connection: usize,
    /// Pages of other origins.
    pub allowed_origins: AllowedOrigins,
    /// The cookie that may carry a token.
    pub cookie: String,
    /// How long tokens count at most, in milliseconds, and how long revocations are kept.
    pub token_lifetime_ms: u64,
    /// Whether figures need an operator.
    pub protect_metrics: bool,
    /// Serve only programs and pages of this machine.
    pub loopback_only: bool,
    /// What `readyz` calls the store.
    pub log_name: &'static str,
    /// Of connections.
    pub listener: ListenerOptions,
}

impl App {
    fn tailers_are_stuck(&self) -> bool {
        self.pulses.iter().any(|pulse| pulse.is_stuck())
    }
}

/// Serves until the drain begins; over TLS where there is a certificate.
pub async fn serve(listener: TcpListener, app: Arc<App>, tls: Option<Arc<Tls>>) {
    let (options, scope, metrics) = (app.options.listener, app.scope.clone(), app.http_metrics.clone());
    listener::serve(listener, (router(app), tls), options, scope, metrics).await;
}

/// What there is, and what it asks of its caller.
pub fn routes() -> Vec<Route> {
    Routes::all().list
}

/// Everything that a broker answers.
pub fn router(app: Arc<App>) -> Router {
    let allowed = Arc::new(app.options.allowed_origins.clone());
    let router = Routes::all().router.fallback(|| async { Problem::new(Code::NotFound, NO_SUCH_PATH) });
    let loopback_only =
        (app.options.loopback_only).then(|| from_fn_with_state(Arc::clone(&allowed), guard::loopback_only));
    let count_refusals = from_fn_with_state(app.http_metrics.clone(), metrics::count_refusals);
    // The outermost first. All in one, because the router boxes its services anew for each layer that it is given.
    let layers = ServiceBuilder::new()
        .layer(from_fn(unread::announce_close))
        .layer(count_refusals)
        .layer(cors(&allowed))
        .layer(map_response(secure::secure))
        .layer(from_fn(guard::limited_head))
        .option_layer(loopback_only)
        .layer(from_fn(explain_method));
    router.with_state(app).layer(layers)
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

/// What an item may have, where anything is read.
#[cfg(any(test, fuzzing))]
pub(crate) const ANY_ITEM_BYTES_MAX: usize = 64;

/// Reads a line as an item; answers its channel and the size of its data.
#[cfg(any(test, fuzzing))]
pub(crate) fn read_any_item(line: &[u8], caller: &crate::auth::Caller) -> Option<(String, usize)> {
    publish::read_any_item(line, caller, ANY_ITEM_BYTES_MAX)
}

/// Reads a query string.
#[cfg(any(test, fuzzing))]
pub(crate) fn read_any_query(text: &str) {
    let Ok(query) = query::Query::parse(Some(text)) else { return };
    for name in ["channels", "channel", "filters", "metadata", "user", "order"] {
        assert_eq!(query.all(name).next(), query.first(name));
    }
    if let Ok(Some(rewind)) = query.number("rewind", 0..=100) {
        assert!(rewind <= 100);
    }
    let _ = query.switch("envelope");
}

/// Reads what proxies say.
#[cfg(any(test, fuzzing))]
pub(crate) fn read_any_forwarded(text: &str) {
    peer::read_any(text);
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
