//! Memory that nobody moved yet is taken under control.

use rustix::io::Errno;

use super::core::{Core, lock};
use crate::engine::memory;
use crate::granule::Granule;
use crate::migrate::Outcome;
use crate::space::Origin;
use crate::table::{Claimed, Place};

/// Guest memory is adopted in pieces of this size, so that small granules do
/// not take a VMA each.
const ADOPT: u64 = crate::addr::HUGE_PAGE_SIZE;

impl Core {
    /// Takes the memory around a granule that nobody moved yet under control.
    pub(super) fn adopt(&self, granule: Granule) -> Result<(), Outcome> {
        let part = self.space.part(granule).ok_or(Outcome::Busy)?;
        let _one_at_a_time = lock(&self.adopting);
        if self.table.get(granule).place != Place::Untouched {
            return Ok(());
        }
        let piece = (ADOPT / self.space.size().bytes()).max(1) as u32;
        let first = part.first + (granule.0 - part.first) / piece * piece;
        let end = (part.first + part.count).min(first + piece);
        // A VMA of its own, unless the piece before is under control too.
        let joins =
            first > part.first && self.table.get(Granule(first - 1)).place != Place::Untouched;
        let vmas = if joins { 0 } else { 2 };
        if !lock(&self.budget).take(vmas) {
            return Err(Outcome::VmaBudget);
        }
        let charge = self.charge_of(|| match self.space.hva_range(Granule(first), end - first) {
            // A kernel that does not tell may have none of it.
            Some(range) => {
                range.len() as u64 - memory::resident(range).map_or(0, |found| found.bytes)
            }
            None => 0,
        });
        if !lock(&self.room).take(charge) {
            lock(&self.budget).given_up(vmas);
            return Err(Outcome::NoMemory);
        }
        let mut claimed: Vec<Claimed> = Vec::new();
        for index in first..end {
            match self.table.claim(Granule(index)) {
                Ok(claim) if claim.from == Place::Untouched => claimed.push(claim),
                Ok(claim) => self.abort(claim),
                Err(_) => {}
            }
        }
        let mut result = Ok(());
        for run in consecutive(claimed) {
            let adopted = self.adopt_run(&run);
            for claim in run {
                match adopted {
                    Ok(()) => {
                        let place = self.space.birthplace(claim.granule);
                        self.table.finish(claim, place, true);
                    }
                    Err(_) => self.abort(claim),
                }
            }
            result = result.and(adopted);
        }
        lock(&self.budget).landed(vmas);
        lock(&self.room).landed(charge);
        result.map_err(|errno| match errno {
            Errno::NOMEM => Outcome::NoFrame,
            _ => Outcome::Busy,
        })
    }

    pub(super) fn adopt_run(&self, run: &[Claimed]) -> Result<(), Errno> {
        let first = run.first().map_or(Granule(0), |claim| claim.granule);
        let range = self.space.hva_range(first, run.len() as u32).ok_or(Errno::INVAL)?;
        self.engine.adopt(range)
    }

    /// Adopts what is there already and lets the first touch of everything
    /// else in RAM come as an event.
    pub(crate) fn watch_first_touches(&self) -> Result<(), Errno> {
        for part in self.space.parts().iter().filter(|part| part.origin == Origin::Ram) {
            let mut next = part.first;
            let end = part.first + part.count;
            while next < end {
                let there = |index: u32| self.engine.exists(Granule(index));
                let present = there(next);
                let mut stop = next + 1;
                while stop < end && there(stop) == present {
                    stop += 1;
                }
                let range = self.space.hva_range(Granule(next), stop - next).ok_or(Errno::INVAL)?;
                if present {
                    self.engine.adopt(range)?;
                    for index in next..stop {
                        self.table.set(Granule(index), Place::Home, true);
                    }
                } else {
                    self.engine.watch_first_touch(range)?;
                }
                next = stop;
            }
        }
        Ok(())
    }
}

/// Claims in runs of neighbours.
fn consecutive(claims: Vec<Claimed>) -> Vec<Vec<Claimed>> {
    let mut runs: Vec<Vec<Claimed>> = Vec::new();
    for claim in claims {
        match runs.last_mut() {
            Some(run) if run.last().is_some_and(|last| last.granule.0 + 1 == claim.granule.0) => {
                run.push(claim);
            }
            _ => runs.push(vec![claim]),
        }
    }
    runs
}
