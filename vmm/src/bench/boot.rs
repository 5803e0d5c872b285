//! `neap bench boot`
