//! Jobs, the policy and events, for people.

use neap_memory::addr::display_size;

use crate::control::api::{
    Event, Job, Jobs, MemoryFailed, MetBy, Metrics, NoMemory, Policy, Progress,
};

use super::show::{columns, granules, migrated, row};

pub(super) fn jobs(answer: &Jobs) -> String {
    if answer.jobs.is_empty() {
        return "no job has begun\n".to_owned();
    }
    let mut rows = vec![row(["job", "what", "state", "granules", "time", ""])];
    rows.extend(answer.jobs.iter().map(|job| {
        row([
            &job.id.to_string(),
            &job.what.to_string(),
            &job.state.to_string(),
            &job.progress.as_ref().map(of_all).unwrap_or_default(),
            &seconds(job.elapsed_ms),
            if job.detached { "detached" } else { "" },
        ])
    }));
    columns(&rows)
}

pub(super) fn job(job: &Job) -> String {
    let mut text = format!("{}\n", headline(job));
    if let Some(result) = &job.result {
        text.push_str(&migrated(result));
    }
    text
}

pub(super) fn policy(answer: &Policy) -> String {
    let others = answer.available.iter().filter(|name| **name != answer.policy);
    let others: Vec<_> = others.map(|name| name.0.to_string()).collect();
    match others.as_slice() {
        [] => format!("{}\n", answer.policy.0),
        others => format!("{} (there are also {})\n", answer.policy.0, others.join(", ")),
    }
}

pub(super) fn metrics(answer: &Metrics) -> String {
    answer.text.clone()
}

pub(super) fn event(event: &Event) -> String {
    let text = match event {
        Event::JobStarted(job) | Event::JobProgress(job) | Event::JobEnded(job) => headline(job),
        Event::Lifecycle(lifecycle) => lifecycle.state.to_string(),
        Event::Policy(changed) => format!("policy {}, was {}", changed.policy.0, changed.before.0),
        Event::Region(changed) if changed.there => format!("region {} is there", changed.region),
        Event::Region(changed) => format!("region {} is gone", changed.region),
        Event::MemoryFailed(failed) => memory_failed(failed),
        Event::NoMemory(NoMemory { job, granules: left }) => format!(
            "{}: {} stayed: a cgroup is near its limit",
            job.map_or_else(|| "unplug".to_owned(), |job| format!("job {job}")),
            granules(*left)
        ),
        Event::Error(error) => format!("error: {error}"),
        Event::Lost(lost) => format!("{} events were lost: this reader was too slow", lost.lost),
        Event::Over {} => "the machine is over".to_owned(),
    };
    format!("{text}\n")
}

fn memory_failed(failed: &MemoryFailed) -> String {
    let place = match (failed.region, failed.frame) {
        (Some(region), Some(frame)) => format!("frame {frame} of region {region}"),
        _ => "host memory".to_owned(),
    };
    let lost = match failed.met {
        MetBy::Frame => "nothing is lost of",
        MetBy::Vcpu | MetBy::Ahead | MetBy::Move => "lost is of",
    };
    let retired = if failed.retired { ", which is retired" } else { "" };
    let told = if failed.machine_check { "; the guest has a machine check" } else { "" };
    let (base, size) = (failed.base, display_size(failed.size));
    format!("memory failed in {place}{retired}: {lost} {base}+{size}{told}")
}

/// One line about a job.
fn headline(job: &Job) -> String {
    let mut text = format!("job {} ({}) {}", job.id, job.what, job.state);
    if let Some(error) = &job.error {
        return format!("{text}: {error}");
    }
    match (&job.result, &job.progress) {
        (Some(result), _) => {
            text += &format!(
                ", moved {}, {}",
                granules(result.moved.granules),
                seconds(job.elapsed_ms)
            );
        }
        (None, Some(progress)) => text += &format!(", {} granules", of_all(progress)),
        (None, None) => {}
    }
    text
}

fn of_all(progress: &Progress) -> String {
    format!("{} of {}", progress.done, progress.total)
}

fn seconds(ms: u64) -> String {
    format!("{}.{:03} s", ms / 1000, ms % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::{Amount, Error, ErrorKind, Hex, JobKind, JobState, Migrated};

    fn example() -> Job {
        Job {
            id: 3,
            what: JobKind::Evacuate,
            detached: true,
            state: JobState::Running,
            progress: None,
            result: None,
            error: None,
            elapsed_ms: 1234,
        }
    }

    #[test]
    fn memory_that_fails_and_memory_that_lacks_have_a_line() {
        let failed = MemoryFailed {
            base: Hex(0x3000),
            size: 4096,
            region: Some(1),
            frame: Some(7),
            retired: true,
            met: MetBy::Vcpu,
            machine_check: true,
        };
        assert_eq!(
            event(&Event::MemoryFailed(failed)),
            "memory failed in frame 7 of region 1, which is retired: lost is of 0x3000+4K; the \
             guest has a machine check\n"
        );
        let (region, frame) = (None, None);
        let home = MemoryFailed { region, frame, retired: false, machine_check: false, ..failed };
        assert_eq!(
            event(&Event::MemoryFailed(home)),
            "memory failed in host memory: lost is of 0x3000+4K\n"
        );
        let lacks = Event::NoMemory(NoMemory { job: Some(2), granules: 1 });
        assert_eq!(event(&lacks), "job 2: 1 granule stayed: a cgroup is near its limit\n");
    }

    #[test]
    fn a_job_has_one_line_at_each_stage() {
        let mut running = example();
        assert_eq!(headline(&running), "job 3 (evacuate) running");
        let moved = Amount { granules: 1, bytes: 2 << 20 };
        running.progress = Some(Progress { done: 1, total: 8, moved });
        assert_eq!(headline(&running), "job 3 (evacuate) running, 1 of 8 granules");
        let result = Some(Migrated { moved, ..Migrated::default() });
        let done = Job { state: JobState::Done, result, ..running.clone() };
        assert_eq!(headline(&done), "job 3 (evacuate) done, moved 1 granule, 1.234 s");
        let error = Some(Error::new(ErrorKind::Refused, "no such region"));
        let failed = Job { state: JobState::Failed, error, ..running.clone() };
        assert_eq!(headline(&failed), "job 3 (evacuate) failed: no such region");
        let text = jobs(&Jobs { jobs: vec![running] });
        assert!(text.ends_with("3    evacuate  running  1 of 8    1.234 s  detached\n"), "{text}");
    }
}
