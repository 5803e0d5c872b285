//! Neap, a virtual machine monitor for coherent device memory.
//!
//! The library holds everything that the binary `neap` does; ARCHITECTURE.md
//! has the map of its modules and the rules between them.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod acpi;
pub mod bench;
pub mod boot;
pub mod cli;
pub mod commands;
pub mod config;
pub mod doctor;
pub mod failure;
pub mod hmm;
pub mod images;
pub mod kvm;
pub mod lab;
pub mod payload;
pub mod platform;
pub mod topology;
