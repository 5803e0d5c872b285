//! The commands of `neap`, one file each: their options, their help, and the
//! call into the module that does the work.

pub mod bench;
pub mod completions;
pub mod ctl;
pub mod doctor;
pub mod hmm_tests;
pub mod lab;
pub mod man;
pub mod openapi;
mod place;
pub mod run;
pub mod setup;
