//! Neap, a virtual machine monitor for coherent device memory.
//!
//! The library holds everything that the binary `neap` does; ARCHITECTURE.md
//! has the map of its modules and the rules between them.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod acpi;
pub mod bare;
pub mod bench;
pub mod boot;
pub mod builder;
pub mod cli;
pub mod commands;
pub mod config;
pub mod console;
pub mod control;
pub mod doctor;
pub mod event_loop;
pub mod failure;
pub mod fd;
pub mod hmm;
pub mod images;
pub mod kvm;
pub mod lab;
pub mod lifecycle;
pub mod machine;
pub mod memory_failure;
pub mod payload;
pub mod platform;
pub mod reporter;
pub mod tiers;
pub mod topology;
