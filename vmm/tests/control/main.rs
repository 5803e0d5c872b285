//! The control socket over a real socket, with memory that takes as long to
//! move as a test wants.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod architecture;
mod browser;
mod http;
mod lines;
mod machine;
mod resources;
