//! The copy threads: each takes a group of claimed granules from the queue,
//! carries it out and says what came of it.

use std::collections::VecDeque;
use std::io;
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

    /// Hands a group over.
    pub(crate) fn submit(&self, group: Group) {
        lock(&self.desk.queue).groups.push_back(group);
        self.desk.work.notify_one();
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

fn serve(core: &Core, desk: &Desk) {
    loop {
        let group = {
            let mut queue = lock(&desk.queue);
            loop {
                if let Some(group) = queue.groups.pop_front() {
                    break group;
                }
                if queue.over {
                    return;
                }
                queue = desk.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
        };
        let outcomes: Vec<(_, Outcome)> = core.carry_out(group.jobs);
        group.tally.add(&outcomes);
    }
}
