//! Configuration of a virtual machine: [`spec`] is what somebody asked for,
//! [`resolve`] what it means.

pub mod file;
mod heat;
pub mod keyvalue;
pub mod resolve;
pub mod spec;
pub mod tiers;
pub mod topology;
pub mod units;

pub use resolve::VmConfig;
pub use spec::VmOptions;
pub use tiers::{EngineName, TiersConfig};

/// Why a configuration is refused: the option, and what is wrong with it.
#[derive(Debug, thiserror::Error)]
#[error("{option}: {message}")]
pub struct ConfigError {
    /// The option as it is spelt on the command line.
    pub option: &'static str,
    /// The value and what would do.
    pub message: String,
}

impl ConfigError {
    /// An error about `option`.
    pub fn new(option: &'static str, message: impl std::fmt::Display) -> Self {
        Self { option, message: message.to_string() }
    }
}
