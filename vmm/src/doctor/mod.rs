//! `neap doctor`: what this machine can do for Neap, and why not.
//!
//! Each [`Check`] looks at one thing and says what it means and what to do.
//! Where it is cheap the thing itself is tried instead of a capability bit:
//! guest code is run, a page is moved. No check changes anything on the
//! machine, none hangs, and none fails: what cannot be found out is a
//! [`State::Missing`] with the reason as its value.
//!
//! The names of the checks and the keys of the JSON form are stable.

mod abi;
mod checks;
pub mod guest_mode;
mod host;
mod render;

use serde::Serialize;

pub use guest_mode::{GuestMode, Speeds, guest_mode};
pub use host::Host;

/// How good the news is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Ok,
    /// Works, with less speed or fewer choices.
    Limited,
    /// Not there.
    Missing,
}

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Stable name, `group.thing`.
    pub name: &'static str,
    /// How good the news is.
    pub state: State,
    /// What was found, or why nothing was.
    pub value: String,
    /// What that means for Neap.
    pub meaning: String,
    /// What to do about it; `None` when there is nothing to gain.
    pub advice: Option<String>,
}

impl Check {
    /// A check that found what it should.
    pub fn ok(name: &'static str, value: impl Into<String>, meaning: impl Into<String>) -> Self {
        Self { name, state: State::Ok, value: value.into(), meaning: meaning.into(), advice: None }
    }

    /// A check that found less than it should.
    pub fn limited(
        name: &'static str,
        value: impl Into<String>,
        meaning: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self {
            state: State::Limited,
            advice: Some(advice.into()),
            ..Self::ok(name, value, meaning)
        }
    }

    /// A check that found nothing.
    pub fn missing(
        name: &'static str,
        value: impl Into<String>,
        meaning: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self { state: State::Missing, ..Self::limited(name, value, meaning, advice) }
    }
}

/// Everything that was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// `native`, `interpreted` or `none`: how guest kernel mode runs here.
    pub guest_mode: &'static str,
    /// Measured speeds of guest code; `None` without KVM, or where it was too
    /// slow to measure.
    pub guest_speed: Option<Speeds>,
    /// The checks in order of display.
    pub checks: Vec<Check>,
}

impl Report {
    /// Adds a check that another part of Neap made, for instance of the
    /// cached guest images.
    pub fn push(&mut self, check: Check) {
        self.checks.push(check);
    }

    /// The report as JSON, indented, with a final newline.
    ///
    /// # Errors
    /// None in practice: strings and finite numbers always serialize.
    pub fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self).map(|json| json + "\n")
    }

    /// The report for people, in lines of at most `width` characters where
    /// words allow it.
    pub fn text(&self, width: usize) -> String {
        render::text(self, width)
    }
}

/// Makes all checks of this machine.
pub fn examine() -> Report {
    let host = Host::this_machine();
    let measured = guest_mode::measure();
    let guest_speed = measured.as_ref().ok().copied();
    let guest_mode = match guest_mode::verdict(&measured) {
        GuestMode::Native => "native",
        GuestMode::Interpreted { .. } => "interpreted",
        GuestMode::NoKvm(_) => "none",
    };
    let mut checks = checks::kvm::all(&host, &measured);
    checks.extend(checks::uffd::all());
    checks.extend(checks::heat::all(&host));
    checks.extend(checks::memory::all(&host));
    checks.extend(checks::numa::all(&host));
    checks.extend(checks::dax::all(&host));
    checks.extend(checks::lab::all(&host));
    Report { guest_mode, guest_speed, checks }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_the_stable_keys() {
        let report = examine();
        let json: serde_json::Value = serde_json::from_str(&report.json().unwrap()).unwrap();
        let mode = json["guest_mode"].as_str().unwrap();
        assert!(["native", "interpreted", "none"].contains(&mode), "{mode}");
        // A busy machine may be too slow to measure: interpreted, no speed.
        assert!(json["guest_speed"].is_null() || mode != "none");
        assert!(!json["guest_speed"].is_null() || mode != "native");
        let checks = json["checks"].as_array().unwrap();
        for check in checks {
            let mut keys: Vec<_> = check.as_object().unwrap().keys().collect();
            keys.sort();
            assert_eq!(keys, ["advice", "meaning", "name", "state", "value"]);
            assert_eq!(check["state"] == "ok", check["advice"].is_null(), "{check}");
        }
    }

    #[test]
    fn every_check_is_there_once() {
        let names: Vec<_> = examine().checks.iter().map(|check| check.name).collect();
        assert_eq!(
            names,
            [
                "kvm.device",
                "kvm.guest_kernel_mode",
                "kvm.second_level_paging",
                "kvm.memory_fault_info",
                "kvm.pre_fault_memory",
                "uffd.open",
                "uffd.features",
                "uffd.move",
                "uffd.write_protect",
                "uffd.write_protect_async",
                "uffd.minor",
                "uffd.poison",
                "pagemap.scan",
                "heat.reads",
                "heat.writes",
                "memory.huge_pages",
                "memory.thp",
                "memory.max_map_count",
                "numa.nodes",
                "numa.hmat",
                "numa.balancing",
                "numa.demotion",
                "dax.devices",
                "lab.qemu",
            ]
        );
    }
}
