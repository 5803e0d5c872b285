//! One migration from its request to its report: granules are looked at in
//! order of address, claimed, and handed to the copy threads in groups. At any
//! time only [`IN_FLIGHT`] bytes are claimed, so that a request over a terabyte
//! keeps nobody's pin waiting for long.

use std::ops::ControlFlow;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::crew::{Crew, Group};
use super::reserve::Reserve;
use super::{MigrateRequest, Outcome, Progress, Report, RequestError, Target};
use crate::GpaRange;
use crate::granule::{Granule, GranuleSize};
use crate::tiers::core::{Core, Job, lock};

/// Bytes that are claimed at a time.
pub const IN_FLIGHT: u64 = 32 << 20;
/// How often somebody who waits for a long move hears of it.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// Bytes between two looks at the clock.
const LOOK_EVERY: u64 = 8 << 20;

/// Frames that a request takes from a pool at a time, at the least.
const FRAME_RUN: usize = 16;

/// Granules that are looked at to fill a group.
const LOOKS_FOR_GROUP: usize = 512;

/// Granules that are taken from the guest together. A touch waits for the
/// whole group, so it is small: one granule of 2 MiB, and no more bytes of
/// smaller ones than are copied in some tens of microseconds.
fn group_len(size: GranuleSize) -> usize {
    match size {
        GranuleSize::M2 => 1,
        GranuleSize::K64 => 8,
        GranuleSize::K4 => 64,
    }
}

/// Outcomes of granules in flight.
#[derive(Default)]
pub(crate) struct Tally {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    in_flight: usize,
    /// How few the requester waits for.
    wanted: usize,
    settled: Vec<(Granule, Outcome)>,
}

impl Tally {
    /// Called by copy threads.
    pub(crate) fn add(&self, outcomes: &[(Granule, Outcome)]) {
        let mut state = lock(&self.state);
        state.in_flight -= outcomes.len();
        state.settled.extend_from_slice(outcomes);
        let enough = state.in_flight <= state.wanted;
        drop(state);
        if enough {
            self.changed.notify_all();
        }
    }

    fn submit(&self, count: usize) {
        lock(&self.state).in_flight += count;
    }

    /// Waits until at the most `most` are in flight, or for a while, and
    /// returns what has settled. The flag says whether it came to that.
    fn wait(&self, most: usize) -> (Vec<(Granule, Outcome)>, bool) {
        let mut state = lock(&self.state);
        state.wanted = most;
        let over = |state: &mut State| state.in_flight > most;
        let (mut state, timeout) = self
            .changed
            .wait_timeout_while(state, TELL_EVERY, over)
            .unwrap_or_else(PoisonError::into_inner);
        (std::mem::take(&mut state.settled), !timeout.timed_out() || state.in_flight <= most)
    }
}

/// The granules of `request`, as pairs of first and count.
pub(crate) fn granules(
    core: &Core,
    request: &MigrateRequest,
) -> Result<Vec<(Granule, u32)>, RequestError> {
    if let Target::Pool(id) = request.to {
        check_pool(core, id.0)?;
    }
    if let Some(id) = request.from_pool {
        check_pool(core, id.0)?;
    }
    if request.ranges.is_empty() {
        return Ok(core
            .space
            .parts()
            .iter()
            .map(|part| (Granule(part.first), part.count))
            .collect());
    }
    let mut sorted = request.ranges.clone();
    sorted.sort_unstable();
    for pair in sorted.windows(2) {
        if pair[0].overlaps(&pair[1]) {
            return Err(RequestError::Overlaps(pair[0], pair[1]));
        }
    }
    let mut found = Vec::new();
    for range in sorted {
        let size = core.space.size();
        if !range.base().is_aligned(size.bytes()) || !range.size().is_multiple_of(size.bytes()) {
            return Err(RequestError::Misaligned { range, granule: size.to_string() });
        }
        let parts = core.space.granules_of(range).ok_or_else(|| {
            let memory: Vec<_> =
                core.space.parts().iter().map(|part| part.range.to_string()).collect();
            RequestError::Outside(range, format!("it has {}", memory.join(", ")))
        })?;
        found.extend(parts);
    }
    Ok(found)
}

fn check_pool(core: &Core, id: u8) -> Result<(), RequestError> {
    match core.pools.len() {
        count if usize::from(id) < count => Ok(()),
        0 => Err(RequestError::NoPool(id, "this machine has none".to_owned())),
        count => Err(RequestError::NoPool(id, format!("this machine has 0 to {}", count - 1))),
    }
}

/// Carries out the migration of `granules`.
pub(crate) fn run(
    core: &Core,
    crew: &Crew,
    request: &MigrateRequest,
    granules: &[(Granule, u32)],
    progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
) -> Report {
    let since = Instant::now();
    lock(&core.budget).look_again();
    let mut run = Run {
        core,
        tally: Arc::default(),
        report: Report::default(),
        done: 0,
        total: granules.iter().map(|(_, count)| u64::from(*count)).sum(),
        cancelled: false,
        looked: 0,
        told: since,
    };
    let (bytes, group_len) = (core.space.size().bytes(), group_len(core.space.size()));
    let window = (IN_FLIGHT / bytes).max(1) as usize;
    let limit = request.limit.unwrap_or(u64::MAX);
    let mut frames = match request.to {
        Target::Home => None,
        Target::Pool(pool) => Some(Reserve::new(pool, FRAME_RUN.max(group_len))),
    };
    let mut group: Vec<Job> = Vec::with_capacity(group_len);
    let mut last = None;
    let mut claimed = 0u64;
    // Granules since the first of the group.
    let mut looked = 0;
    for granule in granules.iter().flat_map(|(first, count)| first.0..first.0 + count) {
        let granule = Granule(granule);
        run.tell(progress);
        if run.cancelled {
            run.note(granule, Outcome::Cancelled);
            continue;
        }
        if claimed == limit {
            break;
        }
        // What is claimed does not wait for granules far away.
        if !group.is_empty() && looked >= LOOKS_FOR_GROUP {
            run.submit(crew, std::mem::take(&mut group));
            crew.flush();
        }
        looked += 1;
        match core.claim(granule, request, &mut frames, last) {
            Ok(job) => {
                last = Some(job.end());
                claimed += 1;
                if group.is_empty() {
                    looked = 0;
                }
                group.push(job);
                if group.len() == group_len {
                    run.submit(crew, std::mem::take(&mut group));
                    // Half of them at a time, so that this thread is not
                    // woken for each.
                    if run.in_flight() + group_len > window {
                        run.wait(crew, window / 2, progress);
                    }
                }
            }
            Err(outcome) => run.note(granule, outcome),
        }
    }
    if let (Target::Pool(pool), Some(frames)) = (request.to, &mut frames)
        && let Some(mut pool) = core.pool(pool)
    {
        frames.release(&mut pool);
    }
    run.submit(crew, group);
    run.wait(crew, 0, progress);
    run.report.elapsed = since.elapsed();
    run.report
}

struct Run<'a> {
    core: &'a Core,
    tally: Arc<Tally>,
    report: Report,
    done: u64,
    total: u64,
    cancelled: bool,
    /// What `done` was at the last look at the clock.
    looked: u64,
    told: Instant,
}

impl Run<'_> {
    fn submit(&self, crew: &Crew, jobs: Vec<Job>) {
        if !jobs.is_empty() {
            self.tally.submit(jobs.len());
            crew.submit(Group { jobs, tally: Arc::clone(&self.tally) });
        }
    }

    fn in_flight(&self) -> usize {
        lock(&self.tally.state).in_flight
    }

    /// Waits until at the most `most` granules are in flight.
    fn wait(
        &mut self,
        crew: &Crew,
        most: usize,
        progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
    ) {
        crew.flush();
        loop {
            let (settled, enough) = self.tally.wait(most);
            for (granule, outcome) in settled {
                self.note(granule, outcome);
            }
            self.tell(progress);
            if enough {
                return;
            }
        }
    }

    fn note(&mut self, granule: Granule, outcome: Outcome) {
        self.done += 1;
        if let Some(range) = self.range(granule) {
            self.report.add(range, outcome);
        }
    }

    fn range(&self, granule: Granule) -> Option<GpaRange> {
        self.core.space.gpa(granule, 1)
    }

    fn tell(&mut self, progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>) {
        if self.core.is_over() {
            self.cancelled = true;
        }
        // The clock costs little beside a move, but a granule that is passed
        // over costs less.
        let look = (LOOK_EVERY / self.core.space.size().bytes()).clamp(1, 256);
        if self.done - self.looked < look && self.done != self.total {
            return;
        }
        self.looked = self.done;
        if self.told.elapsed() < TELL_EVERY {
            return;
        }
        self.told = Instant::now();
        let now = Progress { done: self.done, total: self.total, moved: self.report.moved };
        self.cancelled |= progress(&now).is_break();
    }
}
