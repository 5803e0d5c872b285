//! Reading a request's body: bounded in length and in time, and errors that
//! name the place.

use std::future::poll_fn;
use std::pin::Pin;

use hyper::Request;
use hyper::body::{Body, Incoming};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::super::api::{Error, ErrorKind};
use super::super::server::Limits;
use super::{MAX_BODY, malformed};

/// A body of JSON.
///
/// # Errors
/// It is none, too long, or too slow.
pub(super) async fn json<T: DeserializeOwned>(
    request: Request<Incoming>,
    limits: &Limits,
) -> Result<T, Error> {
    let late = |_| {
        let message = format!("no whole body of a request within {:?}", limits.sending);
        Error::new(ErrorKind::TimedOut, message)
    };
    let bytes = timeout(limits.sending, read(request.into_body())).await.map_err(late)??;
    parse(&bytes)
}

/// The error names the place by a path such as `ranges[0].base`.
fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        let wrong = error.inner().to_string().replace('`', "\"");
        let what = if error.inner().is_data() { "" } else { "no JSON: " };
        match path.as_str() {
            "." => malformed(format!("{what}{wrong}")),
            path => malformed(format!("\"{path}\": {what}{wrong}")),
        }
    })?;
    reader.end().map_err(|error| malformed(format!("no JSON: {error}")))?;
    Ok(value)
}

async fn read(mut body: Incoming) -> Result<Vec<u8>, Error> {
    let too_long =
        || Error::new(ErrorKind::TooLong, format!("a body of more than {MAX_BODY} bytes"));
    if body.size_hint().lower() > MAX_BODY as u64 {
        return Err(too_long());
    }
    let mut bytes = Vec::new();
    while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        let frame = frame.map_err(|error| malformed(format!("no whole body: {error}")))?;
        if let Ok(data) = frame.into_data() {
            if bytes.len() + data.len() > MAX_BODY {
                return Err(too_long());
            }
            bytes.extend_from_slice(&data);
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::super::routes::NewPolicy;
    use super::*;
    use crate::control::api::Migrate;

    #[test]
    fn errors_in_bodies_name_the_place() {
        let wrong = |text: &str| parse::<Migrate>(text.as_bytes()).unwrap_err().message;
        let message = wrong(r#"{"to":"home","ranges":[{"base":"0xg","size":1}]}"#);
        assert!(message.starts_with("\"ranges[0].base\": \"0xg\" is not an address"), "{message}");
        assert!(wrong("{}").contains("\"to\""));
        assert!(wrong(r#"{"to":"moon"}"#).starts_with("\"to\": \"moon\" is neither"));
        assert!(wrong(r#"{"to":"home","limits":1}"#).contains("limits"));
        assert!(wrong("").starts_with("no JSON: EOF"));
        assert!(wrong(r#"{"to":"home"} x"#).starts_with("no JSON: trailing"));
        let policy = parse::<NewPolicy>(br#"{"policy":"lru"}"#).err().unwrap().message;
        assert!(policy.starts_with("\"policy\": \"lru\" is no policy; static"), "{policy}");
    }
}
