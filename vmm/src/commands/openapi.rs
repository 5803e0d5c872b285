//! `neap openapi`: the document that describes the API socket.

use clap::Args;

use crate::control::http::openapi;
use crate::failure::{Outcome, SUCCESS, print};

/// Prints the OpenAPI document of the API socket
///
/// A machine serves the same one at /v1/openapi.json.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  neap openapi > neap.json")]
pub struct OpenapiArgs {}

/// Carries the command out.
///
/// # Errors
/// stdout takes no more.
pub fn execute(_: OpenapiArgs) -> Outcome {
    print(openapi::text())?;
    Ok(SUCCESS)
}
