//! Answers: which status belongs to what, and how they are put together.

use std::rc::Rc;

use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, LOCATION};
use hyper::{Response, StatusCode};
use serde::Serialize;

use super::super::api::{self, Error, ErrorKind};
use super::super::hub::Subscription;
use super::body::{Answer, Content};
use super::stream::Exchange;

pub(super) const JSON: &str = "application/json";
pub(super) const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
pub(super) const EVENTS: &str = "text/event-stream";

/// The body of every answer that is an error.
#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct Failure<'a> {
    /// What is wrong.
    pub(super) error: &'a Error,
}

/// The status of an error.
pub(super) fn status(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::Malformed => StatusCode::BAD_REQUEST,
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::TimedOut => StatusCode::REQUEST_TIMEOUT,
        ErrorKind::State => StatusCode::CONFLICT,
        ErrorKind::TooLong => StatusCode::PAYLOAD_TOO_LARGE,
        ErrorKind::Refused => StatusCode::UNPROCESSABLE_ENTITY,
        ErrorKind::Failed => StatusCode::INTERNAL_SERVER_ERROR,
        ErrorKind::Unsupported => StatusCode::NOT_IMPLEMENTED,
        ErrorKind::TooManyClients | ErrorKind::Over => StatusCode::SERVICE_UNAVAILABLE,
    }
}

fn response(status: StatusCode, kind: &'static str, body: Answer) -> Response<Answer> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    if status != StatusCode::NO_CONTENT {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    }
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// An answer in one piece.
pub(super) fn whole(
    status: StatusCode,
    kind: &'static str,
    bytes: Vec<u8>,
    exchange: Rc<Exchange>,
) -> Response<Answer> {
    response(status, kind, Answer::new(Content::Whole(bytes.into()), exchange))
}

/// Names where what was made is to be found.
pub(super) fn located(mut response: Response<Answer>, place: &str) -> Response<Answer> {
    if let Ok(value) = HeaderValue::from_str(place) {
        response.headers_mut().insert(LOCATION, value);
    }
    response
}

/// Events from now on.
pub(super) fn events(events: Subscription, exchange: Rc<Exchange>) -> Response<Answer> {
    response(StatusCode::OK, EVENTS, Answer::new(Content::Events(events, false), exchange))
}

/// An error.
pub(super) fn failure(error: &Error, exchange: Rc<Exchange>) -> Response<Answer> {
    whole(status(error.kind), JSON, api::json(&Failure { error }), exchange)
}

/// An error about the method, with those that there are.
pub(super) fn wrong_method(
    error: &Error,
    allowed: &str,
    exchange: Rc<Exchange>,
) -> Response<Answer> {
    let body = api::json(&Failure { error });
    let mut response = whole(StatusCode::METHOD_NOT_ALLOWED, JSON, body, exchange);
    if let Ok(value) = HeaderValue::from_str(allowed) {
        response.headers_mut().insert(ALLOW, value);
    }
    response
}

/// An error as bytes, where hyper is not at hand; the connection ends.
pub(super) fn raw(status: StatusCode, error: &Error) -> Vec<u8> {
    let body = api::json(&Failure { error });
    let mut bytes = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {JSON}\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n",
        body.len()
    )
    .into_bytes();
    bytes.extend(body);
    bytes
}
