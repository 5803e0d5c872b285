//! Which path and method ask for what.

use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use serde::Deserialize;
use tokio::sync::mpsc::unbounded_channel;

use super::super::api::{self, Error, ErrorKind, Evacuate, Hex, Migrate, Plug, PolicyWord, Range};
use super::super::server::Ways;
use super::super::{Form, Outgoing, Rendered, Reply};
use super::answer::{self, JSON, METRICS};
use super::body::Answer;
use super::query::Query;
use super::stream::Exchange;
use super::{malformed, openapi, read};
use crate::config::units::Address;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Status,
    Residency,
    Migrate,
    Evacuate,
    Pause,
    Resume,
    Pin,
    Unpin,
    Unplug,
    Plug,
    FailPage,
    Jobs,
    Job,
    Cancel,
    Policy,
    SetPolicy,
    Events,
    OpenApi,
    Metrics,
}

/// One method of one path.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) method: Method,
    /// `{id}` stands for a number.
    pub(super) path: &'static str,
    pub(super) action: Action,
}

const fn route(method: Method, path: &'static str, action: Action) -> Route {
    Route { method, path, action }
}

/// All of them.
pub(super) static ROUTES: [Route; 19] = [
    route(Method::GET, "/v1/status", Action::Status),
    route(Method::GET, "/v1/residency", Action::Residency),
    route(Method::POST, "/v1/migrate", Action::Migrate),
    route(Method::POST, "/v1/evacuate", Action::Evacuate),
    route(Method::POST, "/v1/pause", Action::Pause),
    route(Method::POST, "/v1/resume", Action::Resume),
    route(Method::POST, "/v1/pins", Action::Pin),
    route(Method::DELETE, "/v1/pins/{id}", Action::Unpin),
    route(Method::POST, "/v1/unplug", Action::Unplug),
    route(Method::POST, "/v1/plug", Action::Plug),
    route(Method::POST, "/v1/fail-page", Action::FailPage),
    route(Method::GET, "/v1/jobs", Action::Jobs),
    route(Method::GET, "/v1/jobs/{id}", Action::Job),
    route(Method::DELETE, "/v1/jobs/{id}", Action::Cancel),
    route(Method::GET, "/v1/policy", Action::Policy),
    route(Method::PUT, "/v1/policy", Action::SetPolicy),
    route(Method::GET, "/v1/events", Action::Events),
    route(Method::GET, "/v1/openapi.json", Action::OpenApi),
    route(Method::GET, "/metrics", Action::Metrics),
];

/// A policy to have.
#[derive(Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewPolicy {
    /// The policy from now on.
    policy: PolicyWord,
}

/// A device region.
#[derive(Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Region {
    /// Its number, from 0.
    region: u8,
}

/// A page of guest memory.
#[derive(Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Page {
    /// In the page.
    address: Hex,
}

/// Why there is no route.
enum Lost {
    Path(Error),
    /// With the methods that there are.
    Method(Error, String),
}

/// The route of a request, and what stands for `{id}`.
fn find<'a>(method: &Method, path: &'a str) -> Result<(&'static Route, Option<&'a str>), Lost> {
    // An answer to HEAD is one to GET; hyper leaves the body out.
    let method = if method == Method::HEAD { &Method::GET } else { method };
    let matching = || ROUTES.iter().filter_map(|route| Some((route, matches(route.path, path)?)));
    if let Some((route, id)) = matching().find(|(route, _)| route.method == method) {
        return Ok((route, id));
    }
    let allowed: Vec<&str> = matching().map(|(route, _)| route.method.as_str()).collect();
    if allowed.is_empty() {
        let mut paths: Vec<_> = ROUTES.iter().map(|route| route.path).collect();
        paths.dedup();
        let message = format!("there is no {path}; there are {}", paths.join(", "));
        return Err(Lost::Path(Error::new(ErrorKind::NotFound, message)));
    }
    let allowed = allowed.join(", ");
    Err(Lost::Method(malformed(format!("{path} takes {allowed}, and not {method}")), allowed))
}

/// What stands for `{id}`, if the path is one of this pattern.
fn matches<'a>(pattern: &str, path: &'a str) -> Option<Option<&'a str>> {
    match pattern.strip_suffix("{id}") {
        None => (pattern == path).then_some(None),
        Some(stem) => {
            let id = path.strip_prefix(stem)?;
            (!id.is_empty() && !id.contains('/')).then_some(Some(id))
        }
    }
}

/// Serves a request.
pub(super) async fn serve(
    request: Request<Incoming>,
    ways: Rc<Ways>,
    exchange: Rc<Exchange>,
) -> Result<Response<Answer>, Infallible> {
    exchange.open();
    ways.traffic.http.fetch_add(1, Ordering::Relaxed);
    let uri = request.uri().clone();
    let (route, id) = match find(request.method(), uri.path()) {
        Ok(found) => found,
        Err(Lost::Path(error)) => return Ok(answer::failure(&error, exchange)),
        Err(Lost::Method(error, allowed)) => {
            return Ok(answer::wrong_method(&error, &allowed, exchange));
        }
    };
    let answered = carry_out(route.action, id, uri.query(), request, &ways, &exchange).await;
    Ok(answered.unwrap_or_else(|error| answer::failure(&error, exchange)))
}

async fn carry_out(
    action: Action,
    id: Option<&str>,
    query: Option<&str>,
    request: Request<Incoming>,
    ways: &Ways,
    exchange: &Rc<Exchange>,
) -> Result<Response<Answer>, Error> {
    let known: &[&str] = match action {
        Action::Status => &["verify"],
        Action::Residency => &["from", "verify"],
        Action::Migrate | Action::Evacuate => &["wait"],
        _ => &[],
    };
    let query = Query::parse(query, known)?;
    let number = || id.unwrap_or_default().parse::<u64>();
    let (asked, status, made) = match action {
        Action::Status => {
            let verify = query.flag("verify")?;
            (api::Request::Status { verify }, StatusCode::OK, None)
        }
        Action::Residency => {
            let from = query.get::<Address>("from")?.map_or(Hex(0), |from| Hex(from.0));
            let verify = query.flag("verify")?;
            (api::Request::Residency { verify, from }, StatusCode::OK, None)
        }
        Action::Migrate => {
            let detach = !query.flag("wait")?;
            let asked = read::json::<Migrate>(request, &ways.limits).await?;
            without_detach(asked.detach)?;
            let asked = api::Request::Migrate(Migrate { detach, ..asked });
            (asked, job_status(detach), detach.then_some("/v1/jobs/"))
        }
        Action::Evacuate => {
            let detach = !query.flag("wait")?;
            let asked = read::json::<Evacuate>(request, &ways.limits).await?;
            without_detach(asked.detach)?;
            let asked = api::Request::Evacuate(Evacuate { detach, ..asked });
            (asked, job_status(detach), detach.then_some("/v1/jobs/"))
        }
        Action::Pause => (api::Request::Pause {}, StatusCode::OK, None),
        Action::Resume => (api::Request::Resume {}, StatusCode::OK, None),
        Action::Pin => {
            let range = read::json::<Range>(request, &ways.limits).await?;
            (api::Request::Pin { range }, StatusCode::CREATED, Some("/v1/pins/"))
        }
        Action::Unpin => {
            let pin = number().map_err(|_| not_found("pin", id))?;
            (api::Request::Unpin { pin }, StatusCode::NO_CONTENT, None)
        }
        Action::Unplug => {
            let Region { region } = read::json(request, &ways.limits).await?;
            (api::Request::Unplug { region }, StatusCode::OK, None)
        }
        Action::Plug => {
            let asked = read::json::<Plug>(request, &ways.limits).await?;
            (api::Request::Plug(asked), StatusCode::OK, None)
        }
        Action::FailPage => {
            let Page { address } = read::json(request, &ways.limits).await?;
            (api::Request::FailPage { address }, StatusCode::OK, None)
        }
        Action::Jobs => (api::Request::Jobs {}, StatusCode::OK, None),
        Action::Job => {
            let job = number().map_err(|_| not_found("job", id))?;
            (api::Request::Job { job }, StatusCode::OK, None)
        }
        Action::Cancel => {
            let job = number().map_err(|_| not_found("job", id))?;
            (api::Request::Cancel { job }, StatusCode::ACCEPTED, None)
        }
        Action::Policy => (api::Request::Policy { set: None }, StatusCode::OK, None),
        Action::SetPolicy => {
            let new = read::json::<NewPolicy>(request, &ways.limits).await?;
            (api::Request::Policy { set: Some(new.policy) }, StatusCode::OK, None)
        }
        Action::Metrics => (api::Request::Metrics {}, StatusCode::OK, None),
        Action::Events => return Ok(answer::events(ways.hub.subscribe(), Rc::clone(exchange))),
        Action::OpenApi => {
            let document = openapi::text().as_bytes().to_vec();
            return Ok(answer::whole(StatusCode::OK, JSON, document, Rc::clone(exchange)));
        }
    };
    let mut rendered = ask(asked, ways).await.map_err(|error| match (action, error.kind) {
        // In JSON lines it is a request that is refused; here it is a path.
        (Action::Unpin, ErrorKind::Refused) => Error { kind: ErrorKind::NotFound, ..error },
        _ => error,
    })?;
    if status == StatusCode::NO_CONTENT {
        rendered.bytes.clear();
    }
    let kind = if action == Action::Metrics { METRICS } else { JSON };
    let response = answer::whole(status, kind, rendered.bytes, Rc::clone(exchange));
    Ok(match (made, rendered.made) {
        (Some(folder), Some(number)) => answer::located(response, &format!("{folder}{number}")),
        _ => response,
    })
}

/// In JSON lines a request waits unless it says so, here it is the other way
/// round.
fn without_detach(detach: bool) -> Result<(), Error> {
    match detach {
        false => Ok(()),
        true => Err(malformed("\"detach\" belongs to JSON lines: leave it out, and wait=true too")),
    }
}

fn job_status(detach: bool) -> StatusCode {
    if detach { StatusCode::ACCEPTED } else { StatusCode::OK }
}

fn not_found(what: &str, id: Option<&str>) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no {what} \"{}\"", id.unwrap_or_default()))
}

/// Set when the client is gone, with whom goes the future that waits for the
/// answer.
struct Waiting(Arc<AtomicBool>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

async fn ask(request: api::Request, ways: &Ways) -> Result<Rendered, Error> {
    let (outgoing, mut replies) = unbounded_channel();
    let waiting = Waiting(Arc::default());
    let (gone, hub) = (Arc::clone(&waiting.0), Arc::clone(&ways.hub));
    ways.ask(request, Reply::new(outgoing, Form::Http, gone, hub));
    match replies.recv().await {
        Some(Outgoing::Whole(result)) => result,
        // Every reply answers, if only when it is dropped.
        _ => Err(Error::new(ErrorKind::Over, "the machine is over")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_found_with_their_numbers() {
        let found = |method: Method, path| find(&method, path).ok().map(|(r, id)| (r.action, id));
        assert_eq!(found(Method::GET, "/v1/jobs/17"), Some((Action::Job, Some("17"))));
        assert_eq!(found(Method::DELETE, "/v1/jobs/17"), Some((Action::Cancel, Some("17"))));
        assert_eq!(found(Method::GET, "/v1/jobs"), Some((Action::Jobs, None)));
        assert_eq!(found(Method::HEAD, "/v1/status"), Some((Action::Status, None)));
        for path in ["/", "/v1/jobs/", "/v1/jobs/1/2", "/v2/status", "/v1/status/", ""] {
            assert!(matches!(find(&Method::GET, path), Err(Lost::Path(_))), "{path}");
        }
        let Err(Lost::Method(error, allowed)) = find(&Method::POST, "/v1/policy") else { panic!() };
        assert_eq!(allowed, "GET, PUT");
        assert_eq!(error.message, "/v1/policy takes GET, PUT, and not POST");
    }
}
