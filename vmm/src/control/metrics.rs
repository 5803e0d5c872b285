//! Everything that is counted, in the text format of Prometheus, version 0.0.4
//! (prometheus.io, "Exposition formats"): families of samples, each with its
//! help and type. Written from the same numbers as `status`: a scrape takes no
//! lock that `status` does not, and moves nothing.

use std::collections::BTreeMap;
use std::fmt::Write;

use neap_memory::migrate::Outcome;

use super::api::{FaultLatency, Heat, State, Status, Tiers};
use super::jobs::JobCounts;

/// What there is beside the status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Requests in JSON lines, and by HTTP.
    pub(super) requests: (u64, u64),
    /// Jobs.
    pub(super) jobs: JobCounts,
    /// Exits of all vCPUs, by kind.
    pub(super) exits: Vec<(&'static str, u64)>,
}

/// The whole text.
pub(super) fn text(status: &Status, counts: &Counts) -> String {
    let mut text = Text(String::new());
    text.family("neap_info", "gauge", "The process; always 1.");
    text.sample("neap_info", &[("version", &status.version)], 1);
    text.one("neap_vcpus", "gauge", "vCPUs of the machine.", status.vcpus as u64);
    let running = u64::from(status.state == State::Running);
    text.one("neap_running", "gauge", "Whether the vCPUs run: 1, or 0.", running);
    let help = "Guest memory, RAM and windows of device regions.";
    text.one("neap_memory_bytes", "gauge", help, status.memory_bytes);
    text.family("neap_vcpu_exits_total", "counter", "Exits of all vCPUs, by kind.");
    for (kind, count) in &counts.exits {
        text.sample("neap_vcpu_exits_total", &[("kind", kind)], *count);
    }
    text.family("neap_api_requests_total", "counter", "Requests on the API socket.");
    for (protocol, count) in [("json-lines", counts.requests.0), ("http", counts.requests.1)] {
        text.sample("neap_api_requests_total", &[("protocol", protocol)], count);
    }
    let jobs = &counts.jobs;
    text.one("neap_jobs_total", "counter", "Migrations that were begun.", jobs.begun);
    text.one("neap_jobs_running", "gauge", "Migrations at work.", jobs.running);
    if let Some(tiers) = &status.tiers {
        let help = "Granules of migrations that ended, by what came of each.";
        text.outcomes("neap_requested_granules_total", help, &jobs.outcomes);
        text.tiers(tiers);
    }
    text.0
}

struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // A text takes everything that is written to it, here and below.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: u64) {
        self.0.push_str(name);
        for (index, (label, value)) in labels.iter().enumerate() {
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{}{label}=\"{value}\"", if index == 0 { '{' } else { ',' });
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{end} {value}");
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: u64) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }

    fn outcomes(&mut self, name: &str, help: &str, counts: &BTreeMap<String, u64>) {
        self.family(name, "counter", help);
        // Also those that there were none of: a rate needs its zero.
        for (outcome, _) in Outcome::NAMES {
            let count = counts.get(outcome).copied().unwrap_or(0);
            self.sample(name, &[("outcome", outcome)], count);
        }
    }

    fn tiers(&mut self, tiers: &Tiers) {
        self.family("neap_policy", "gauge", "The policy at work; always 1.");
        self.sample("neap_policy", &[("policy", &tiers.policy)], 1);
        let moves = &tiers.moves;
        self.family("neap_moved_granules_total", "counter", "Granules that moved, by direction.");
        for (direction, count) in [
            ("to-device", moves.to_device),
            ("to-home", moves.to_home),
            ("between-devices", moves.between),
        ] {
            self.sample("neap_moved_granules_total", &[("direction", direction)], count);
        }
        self.one("neap_moved_bytes_total", "counter", "Bytes of granules that moved.", moves.bytes);
        let help = "Granules that were in motion, faults included, by what came of it; all but \
                    moved stayed whole where they were.";
        self.outcomes("neap_move_outcomes_total", help, &tiers.outcomes);
        self.family("neap_faults_total", "counter", "Faults of guest memory, by what came of it.");
        for (outcome, count) in &tiers.faults {
            self.sample("neap_faults_total", &[("outcome", outcome)], *count);
        }
        self.latency(&tiers.fault_latency);
        let help = "Pieces of host memory that have failed under guest memory.";
        self.one("neap_memory_failures_total", "counter", help, tiers.memory_failures);
        if let Some(heat) = &tiers.heat {
            self.heat(heat);
        }
        self.regions(tiers);
        let help = "Mappings of the process, at the most, and how many it may have.";
        self.family("neap_mappings", "gauge", help);
        self.sample("neap_mappings", &[("of", "now")], tiers.vmas);
        self.sample("neap_mappings", &[("of", "limit")], tiers.vma_budget);
    }

    fn heat(&mut self, heat: &Heat) {
        const NAME: &str = "neap_heat_granules_total";
        let help = "Granules of policy heat: watched for a tick, touched meanwhile, promoted to \
                    device regions and demoted.";
        self.family(NAME, "counter", help);
        for (what, count) in [
            ("watched", heat.watched),
            ("touched", heat.touched),
            ("promoted", heat.promoted),
            ("demoted", heat.demoted),
        ] {
            self.sample(NAME, &[("what", what)], count);
        }
        let help = "Bytes that policy heat moved.";
        self.one("neap_heat_moved_bytes_total", "counter", help, heat.bytes);
        let help = "Microseconds of the guest's time that watching is taken to have cost.";
        self.one("neap_heat_cost_microseconds_total", "counter", help, heat.cost_us);
    }

    fn regions(&mut self, tiers: &Tiers) {
        let help = "Frames of each device region's pool, by state, in bytes.";
        self.family("neap_region_bytes", "gauge", help);
        for region in &tiers.regions {
            let number = region.region.to_string();
            for (state, frames) in
                [("free", region.free), ("used", region.used), ("retired", region.retired)]
            {
                let labels = [("region", &*number), ("kind", &*region.kind), ("state", state)];
                let bytes = frames.saturating_mul(tiers.granule_bytes);
                self.sample("neap_region_bytes", &labels, bytes);
            }
        }
    }

    fn latency(&mut self, latency: &FaultLatency) {
        const NAME: &str = "neap_fault_seconds";
        let help = "From the moment in which a fault was read to the moment in which whoever \
                    waited was woken; without those on memory in motion.";
        self.family(NAME, "histogram", help);
        let mut below = 0;
        let bounds = latency.bounds_us.iter().map(|us| seconds(us * 1000));
        let bounds = bounds.chain(["+Inf".to_owned()]);
        for (bound, count) in bounds.zip(&latency.counts) {
            below += count;
            self.sample(&format!("{NAME}_bucket"), &[("le", &bound)], below);
        }
        let _ = writeln!(self.0, "{NAME}_sum {}", seconds(latency.total_ns));
        self.sample(&format!("{NAME}_count"), &[], below);
    }
}

/// Nanoseconds as seconds, exactly.
fn seconds(ns: u64) -> String {
    let text = format!("{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::Region;

    fn status() -> Status {
        let regions = vec![Region { free: 3, used: 1, kind: "public".into(), ..Region::default() }];
        let tiers = Tiers {
            granule_bytes: 2 << 20,
            policy: "static".into(),
            outcomes: [("moved".into(), 5), ("pinned".into(), 2)].into(),
            fault_latency: FaultLatency {
                bounds_us: vec![10, 100],
                counts: vec![1, 2, 3],
                total_ns: 1_500_000_001,
            },
            regions,
            heat: Some(Heat { watched: 9, ..Heat::default() }),
            ..Tiers::default()
        };
        let state = State::Running;
        Status {
            version: "1.\"0\"".into(),
            pid: 1,
            state,
            vcpus: 2,
            memory_bytes: 1 << 30,
            tiers: Some(tiers),
        }
    }

    #[test]
    fn every_line_is_a_comment_or_a_sample_of_the_family_before() {
        let counts = Counts { exits: vec![("io", 7)], ..Counts::default() };
        let text = text(&status(), &counts);
        let mut family = "";
        for line in text.lines() {
            if let Some(typed) = line.strip_prefix("# TYPE ") {
                family = typed.split(' ').next().unwrap();
            } else if !line.starts_with("# HELP ") {
                let (name, value) = line.rsplit_once(' ').unwrap();
                assert!(name.starts_with(family), "{line}");
                assert!(value.parse::<f64>().is_ok(), "{line}");
            }
        }
        for line in [
            "neap_info{version=\"1.\\\"0\\\"\"} 1",
            "neap_vcpu_exits_total{kind=\"io\"} 7",
            "neap_move_outcomes_total{outcome=\"pinned\"} 2",
            "neap_move_outcomes_total{outcome=\"copy-failed\"} 0",
            "neap_heat_granules_total{what=\"watched\"} 9",
            "neap_region_bytes{region=\"0\",kind=\"public\",state=\"free\"} 6291456",
        ] {
            assert!(text.lines().any(|other| other == line), "no {line} in {text}");
        }
    }

    #[test]
    fn buckets_add_up() {
        let text = text(&status(), &Counts::default());
        let lines: Vec<_> = text.lines().filter(|line| line.starts_with("neap_fault_")).collect();
        assert_eq!(
            lines,
            [
                "neap_fault_seconds_bucket{le=\"0.00001\"} 1",
                "neap_fault_seconds_bucket{le=\"0.0001\"} 3",
                "neap_fault_seconds_bucket{le=\"+Inf\"} 6",
                "neap_fault_seconds_sum 1.500000001",
                "neap_fault_seconds_count 6",
            ]
        );
    }
}
