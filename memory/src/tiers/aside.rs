//! Granules that are set aside for a while, so that their next touch is seen.

use super::core::{Core, lock};
use crate::granule::{Granule, Kind};
use crate::hva::Hva;
use crate::table::{Place, TryPinError, View};

impl Core {
    /// Whether a granule in that state was set aside to see its next touch,
    /// and is not in a frame where vCPUs must not reach it.
    pub(crate) fn is_aside(&self, granule: Granule, view: &View) -> bool {
        match view.place {
            _ if view.mapped => false,
            Place::Untouched => false,
            Place::Home => true,
            Place::Device { pool, .. } => self.kind_for(granule, pool) != Kind::Private,
        }
    }

    /// Sets a mapped granule aside, so that its next touch is seen. False if
    /// it is not to be had now.
    pub(crate) fn set_aside(&self, granule: Granule) -> bool {
        // What is lost of it is marked where the guest has it.
        if self.damaged.contains(granule) {
            return false;
        }
        let Ok(claimed) = self.table.claim(granule) else { return false };
        let place = claimed.from;
        let vmas = if self.engine.aside_is_mapped() { 2 } else { 0 };
        if place == Place::Untouched
            || !claimed.was_mapped
            || vmas > 0 && !lock(&self.budget).take(vmas)
        {
            self.abort(claimed);
            return false;
        }
        let aside = self.engine.set_aside(granule, place);
        if vmas > 0 {
            // As soon as its neighbours are watched as well they are one again,
            // and one that was watched already took none: counting tells.
            lock(&self.budget).given_up(vmas);
        }
        if aside.is_err() {
            self.abort(claimed);
            return false;
        }
        self.table.finish(claimed, place, false);
        self.wake_settled(granule, false);
        true
    }

    /// Gives the guest a granule back that was set aside and is as `view` says.
    /// False if it changed since, or is on its way.
    pub(crate) fn bring_back(&self, granule: Granule, view: View) -> bool {
        let Ok(claimed) = self.table.claim(granule) else { return false };
        if claimed.from != view.place || claimed.was_mapped {
            self.abort(claimed);
            return false;
        }
        self.engine.bring_back(granule, claimed.from);
        self.table.finish(claimed, view.place, true);
        self.wake_settled(granule, true);
        true
    }

    /// Whether the guest has a granule, which was as `view` says, so that its
    /// next touch can be seen. One that nobody moved yet is taken under control
    /// first, as long as some of `adopt` are left.
    pub(super) fn can_be_watched(&self, granule: Granule, view: &View, adopt: &mut u32) -> bool {
        if view.place != Place::Untouched {
            return view.mapped;
        }
        if *adopt == 0 {
            return false;
        }
        *adopt -= 1;
        self.is_managed(granule)
    }

    /// Takes a granule that exists and that nobody moved yet under control, so
    /// that it can be set aside; true if it was already.
    pub(super) fn is_managed(&self, granule: Granule) -> bool {
        match self.table.get(granule).place {
            Place::Untouched if self.watches_first_touch || !self.engine.exists(granule) => false,
            Place::Untouched if self.engine.adopts() => {
                self.adopt(granule).is_ok() && self.table.get(granule).place != Place::Untouched
            }
            Place::Untouched => self.take_note(granule),
            Place::Home | Place::Device { .. } => true,
        }
    }

    /// Takes a granule that exists, and that needs no adoption, into the table.
    pub(super) fn take_note(&self, granule: Granule) -> bool {
        let Ok(claimed) = self.table.claim(granule) else { return false };
        if claimed.from == Place::Untouched {
            self.table.finish(claimed, self.space.birthplace(granule), true);
            self.wake_settled(granule, true);
        } else {
            self.abort(claimed);
        }
        true
    }

    /// Serves a touch of a page that is there and not mapped, of a granule that
    /// is not set aside: the kernel has unmapped it for reasons of its own. False
    /// if the granule is in motion; whoever moves it wakes then.
    pub(crate) fn map_in(&self, granule: Granule, page: Hva) -> bool {
        let pinned = match self.table.try_pin(granule) {
            Ok(()) => true,
            Err(TryPinError::Moving) => return false,
            // So many hold it that nobody can move it before all have let go.
            Err(TryPinError::TooMany) => false,
        };
        // It goes nowhere now.
        let place = self.space.actual(granule, self.table.get(granule).place);
        self.engine.map_in(granule, place, page);
        if pinned {
            self.table.unpin(granule);
        }
        true
    }
}
