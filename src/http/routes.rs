//! The table of routes: what there is, and what each asks of its caller.
//!
//! Invariant: a route cannot be added without saying what it needs, and the list that tests compare with is made
//! by the same call that adds the route.

use std::pin::Pin;
use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::handler::Handler;
use axum::response::Response;
use axum::routing::{MethodFilter, on};
use http::Method;

use super::access::{self, Needs};
use super::{App, manage, metrics, peer, publish, revocations, subscribe};

/// One route, as the table lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// `GET` answers `HEAD` too.
    pub method: Method,
    /// With `{parameters}`.
    pub path: &'static str,
    /// What is asked of the caller.
    pub needs: Needs,
}

/// A router under construction, and its list.
pub(super) struct Routes {
    pub(super) router: Router<Arc<App>>,
    pub(super) list: Vec<Route>,
}

impl Routes {
    /// Everything that a broker answers.
    pub(super) fn all() -> Self {
        Self { router: Router::new(), list: Vec::new() }
            .get("/events", Needs::Reader, subscribe::subscribe)
            .get("/events/authenticated", Needs::User, subscribe::subscribe_authenticated)
            .post("/events", Needs::Writer, publish::publish_many)
            .get("/cursor", Needs::Reader, subscribe::cursor)
            .get("/channels", Needs::Reader, manage::list)
            .get("/channels/{channel}", Needs::Reader, manage::info)
            .delete("/channels/{channel}", Needs::Admin, manage::purge)
            .get("/channels/{channel}/events", Needs::Reader, manage::history)
            .post("/channels/{channel}/events", Needs::Writer, publish::publish_to_channel)
            .post("/channels/{channel}/adopt", Needs::Admin, manage::adopt)
            .get("/revocations", Needs::Admin, revocations::list)
            .post("/revocations", Needs::Admin, revocations::revoke)
            .get("/healthz", Needs::Nothing, manage::healthz)
            .get("/readyz", Needs::Nothing, manage::readyz)
            .get("/metrics", Needs::Figures, metrics::metrics)
    }

    fn get<H: Handler<T, Arc<App>>, T: 'static>(self, path: &'static str, needs: Needs, handler: H) -> Self {
        self.add((Method::GET, MethodFilter::GET), path, needs, handler)
    }

    fn post<H: Handler<T, Arc<App>>, T: 'static>(self, path: &'static str, needs: Needs, handler: H) -> Self {
        self.add((Method::POST, MethodFilter::POST), path, needs, handler)
    }

    fn delete<H: Handler<T, Arc<App>>, T: 'static>(
        self,
        path: &'static str,
        needs: Needs,
        handler: H,
    ) -> Self {
        self.add((Method::DELETE, MethodFilter::DELETE), path, needs, handler)
    }

    fn add<H: Handler<T, Arc<App>>, T: 'static>(
        mut self,
        (method, filter): (Method, MethodFilter),
        path: &'static str,
        needs: Needs,
        handler: H,
    ) -> Self {
        self.router = self.router.route(path, on(filter, Gated { needs, handler }));
        self.list.push(Route { method, path, needs });
        self
    }
}

/// A handler that only runs for whom [`access::enter`] lets in; it finds the caller, and where
/// they are, among the request's extensions.
#[derive(Clone)]
struct Gated<H> {
    needs: Needs,
    handler: H,
}

impl<H: Handler<T, Arc<App>>, T: 'static> Handler<T, Arc<App>> for Gated<H> {
    type Future = Pin<Box<dyn Future<Output = Response> + Send>>;

    fn call(self, request: Request, app: Arc<App>) -> Self::Future {
        Box::pin(async move {
            let (mut parts, body) = request.into_parts();
            let source = peer::source(&parts, &app.options.trusted_proxies);
            parts.extensions.insert(source);
            match access::enter(&app, self.needs, &parts).await {
                Ok(caller) => parts.extensions.insert(caller),
                Err(refused) => return refused,
            };
            self.handler.call(Request::from_parts(parts, body), app).await
        })
    }
}
