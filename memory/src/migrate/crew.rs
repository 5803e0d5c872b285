//! The copy threads: each takes a group of claimed granules from the queue,
//! carries it out and says what came of it.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use super::{Outcome, run::Tally};
use crate::tiers::core::{Core, Job, lock};
use crate::tiers::death::Death;

/// Claimed granules that are moved together.
pub(crate) struct Group {
    /// What is to move.
    pub(crate) jobs: Vec<Job>,
    /// Who wants to know.
    pub(crate) tally: Arc<Tally>,
}

#[derive(Default)]
struct Queue {
    groups: VecDeque<Group>,
    threads: usize,
    /// Threads that wait for work.
    idle: usize,
    over: bool,
}

#[derive(Default)]
struct Desk {
    queue: Mutex<Queue>,
    work: Condvar,
}

/// The copy threads of one machine.
pub(crate) struct Crew {
    desk: Arc<Desk>,
    threads: Vec<JoinHandle<()>>,
}

impl Crew {
    /// Starts `count` threads, at least one.
    ///
    /// # Errors
    /// No thread could be had.
    pub(crate) fn new(core: &Arc<Core>, count: usize) -> io::Result<Self> {
        let desk = Arc::<Desk>::default();
        lock(&desk.queue).threads = count.max(1);
        let mut crew = Self { desk, threads: Vec::new() };
        for index in 0..count.max(1) {
            let (core, desk) = (Arc::clone(core), Arc::clone(&crew.desk));
            let work = move || {
                let _death = Death::of("a copy thread", core.fatal);
                serve(&core, &desk);
            };
            crew.threads.push(thread::Builder::new().name(format!("copy{index}")).spawn(work)?);
        }
        Ok(crew)
    }

    /// Hands a group over. Threads that wait for work are woken when there are
    /// some, or by [`Crew::flush`].
    pub(crate) fn submit(&self, group: Group) {
        let mut queue = lock(&self.desk.queue);
        queue.groups.push_back(group);
        let wake = queue.groups.len() >= WAKE_FOR && queue.idle > 0;
        drop(queue);
        if wake {
            self.desk.work.notify_all();
        }
    }

    /// Has everything that was handed over begun on.
    pub(crate) fn flush(&self) {
        let queue = lock(&self.desk.queue);
        let wake = !queue.groups.is_empty() && queue.idle > 0;
        drop(queue);
        if wake {
            self.desk.work.notify_all();
        }
    }
}

impl Drop for Crew {
    /// Ends the threads once the queue is empty.
    fn drop(&mut self) {
        lock(&self.desk.queue).over = true;
        self.desk.work.notify_all();
        for thread in self.threads.drain(..) {
            // A panic has ended the process.
            let _ = thread.join();
        }
    }
}

/// Groups in a row that nobody waited for until groups are joined.
const CALM: u32 = 8;
/// Most groups that are moved as one. Calls for many granules cost little more
/// than for one, but a granule of them is away for as long as all are; in a
/// guest that uses its memory that would cost more than it saves.
const JOINED: usize = 16;
/// Groups that are worth waking a thread for.
const WAKE_FOR: usize = 8;

fn serve(core: &Core, desk: &Desk) {
    let mut calm = 0;
    while let Some(groups) = next(desk, calm) {
        let waited = core.counters.waited.load(Ordering::Relaxed);
        let mut jobs = Vec::new();
        let mut tallies = Vec::with_capacity(groups.len());
        for group in groups {
            tallies.push((group.jobs.len(), group.tally));
            match jobs.is_empty() {
                true => jobs = group.jobs,
                false => jobs.extend(group.jobs),
            }
        }
        let outcomes: Vec<(_, Outcome)> = core.carry_out(jobs);
        let mut rest = outcomes.as_slice();
        for (count, tally) in tallies {
            let (own, others) = rest.split_at(count);
            tally.add(own);
            rest = others;
        }
        let undisturbed = core.counters.waited.load(Ordering::Relaxed) == waited;
        calm = if undisturbed { (calm + 1).min(CALM) } else { 0 };
    }
}

/// The next group, with others behind it when all is calm; none at the end.
fn next(desk: &Desk, calm: u32) -> Option<Vec<Group>> {
    let mut queue = lock(&desk.queue);
    loop {
        if let Some(group) = queue.groups.pop_front() {
            let mut groups = vec![group];
            if calm == CALM {
                // The other threads get their share.
                let share = (queue.groups.len() + 1) / queue.threads.max(1);
                let more = share.min(JOINED).saturating_sub(1).min(queue.groups.len());
                groups.extend(queue.groups.drain(..more));
            }
            return Some(groups);
        }
        if queue.over {
            return None;
        }
        queue.idle += 1;
        queue = desk.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
        queue.idle -= 1;
    }
}
