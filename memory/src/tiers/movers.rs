//! Requests that are at work, and who gives way to whom: two requests of people
//! that overlap are a mistake of the later one, and policy `heat` passes over
//! what a person's request is at work on.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use super::core::{Core, lock};
use super::death::Death;
use crate::GpaRange;
use crate::granule::Granule;
use crate::migrate::crew::Crew;
use crate::migrate::{MigrateRequest, Progress, Report, RequestError, run};

/// Whoever moves granules on request.
pub(crate) struct Movers {
    crew: Crew,
    pub(crate) core: Arc<Core>,
    /// Ranges that a person's request is at work on.
    active: Mutex<Vec<(u64, GpaRange)>>,
    next: AtomicU64,
    /// Held while the heat thread has granules in its hands: a few at a time.
    /// Never taken by somebody who holds `active`.
    heat: Mutex<()>,
}

impl Movers {
    pub(crate) fn new(core: Arc<Core>, crew: Crew) -> Self {
        Self {
            crew,
            core,
            active: Mutex::default(),
            next: AtomicU64::new(0),
            heat: Mutex::default(),
        }
    }

    /// Carries a person's request out.
    pub(crate) fn migrate(
        &self,
        request: &MigrateRequest,
        progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
    ) -> Result<Report, RequestError> {
        if self.core.is_over() {
            return Err(RequestError::Over);
        }
        // A panic would leave granules claimed for ever.
        let _death = Death::of("a thread that moves memory", self.core.fatal);
        let granules = run::granules(&self.core, request)?;
        let _active = self.activate(&granules)?;
        // What the heat thread took before it could see this request.
        drop(lock(&self.heat));
        Ok(run::run(&self.core, &self.crew, request, &granules, progress))
    }

    /// Notes that a request is at work on `granules`.
    fn activate(&self, granules: &[(Granule, u32)]) -> Result<Active<'_>, RequestError> {
        let ranges: Vec<GpaRange> =
            granules.iter().filter_map(|(g, count)| self.core.space.gpa(*g, *count)).collect();
        let mut active = lock(&self.active);
        for range in &ranges {
            if let Some((_, other)) = active.iter().find(|(_, other)| other.overlaps(range)) {
                return Err(RequestError::Overlaps(*range, *other));
            }
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        active.extend(ranges.iter().map(|range| (id, *range)));
        Ok(Active { movers: self, id })
    }

    /// Granules for the heat thread. Until this is dropped no request begins
    /// that is not seen by [`Turn::may`], so it is kept for milliseconds.
    pub(crate) fn turn(&self) -> Turn<'_> {
        let held = lock(&self.heat);
        Turn { movers: self, active: lock(&self.active).clone(), _held: held }
    }
}

/// The heat thread's turn.
pub(crate) struct Turn<'a> {
    movers: &'a Movers,
    active: Vec<(u64, GpaRange)>,
    _held: MutexGuard<'a, ()>,
}

impl Turn<'_> {
    /// Whether no person's request is at work on a granule.
    pub(crate) fn may(&self, granule: Granule) -> bool {
        self.active.is_empty()
            || self
                .movers
                .core
                .space
                .gpa(granule, 1)
                .is_some_and(|range| !self.active.iter().any(|(_, active)| active.overlaps(&range)))
    }

    /// Carries out a request of granules that all [`Self::may`] move.
    pub(crate) fn migrate(&self, request: &MigrateRequest) -> Result<Report, RequestError> {
        let Movers { core, crew, .. } = self.movers;
        if core.is_over() {
            return Err(RequestError::Over);
        }
        let granules = run::granules(core, request)?;
        Ok(run::run(core, crew, request, &granules, &mut |_| ControlFlow::Continue(())))
    }
}

/// A request at work.
struct Active<'a> {
    movers: &'a Movers,
    id: u64,
}

impl Drop for Active<'_> {
    fn drop(&mut self) {
        lock(&self.movers.active).retain(|(id, _)| *id != self.id);
    }
}
