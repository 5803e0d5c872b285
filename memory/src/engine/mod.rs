//! How a granule's contents get from one place to another underneath a
//! running guest. Three engines, chosen by the kind of host memory:
//!
//! * [`mover`] for private anonymous memory: the page is taken out of the
//!   guest's range with `UFFDIO_MOVE`, copied, and the copy is moved in.
//! * [`remap`] for files in memory (memfd, hugetlb) and for /dev/dax: writers
//!   are held off by write-protection, or parked, the contents copied from one
//!   alias mapping to the other, and the new place mapped over the old with
//!   `MAP_FIXED`.
//! * [`node`] for tiers that are NUMA nodes of the host: the kernel moves the
//!   pages, which stay at their address.
//!
//! All work on groups of [`Step`]s whose granules the caller has claimed.
//! Whatever fails, each granule of the group is afterwards whole, either where
//! it was or where it was to go; the outcome says which. A granule that cannot
//! be made whole again ends the process ([`Fatal`]).

mod glance;
pub mod hooks;
pub(crate) mod hurry;
pub(crate) mod losses;
pub(crate) mod memory;
pub(crate) mod mover;
pub(crate) mod node;
mod pace;
pub(crate) mod remap;
pub(crate) mod rows;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use rustix::io::Errno;

use self::hurry::Waiters;
use self::rows::Row;
use crate::granule::{Granule, PoolId};
use crate::hva::{Hva, HvaRange};
use crate::migrate::Outcome;
use crate::numa::Placement;
use crate::park::Stalls;
use crate::table::Place;

/// Which engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineName {
    /// `UFFDIO_MOVE`, for anonymous memory.
    Move,
    /// Write-protect and map over, for files in memory.
    Remap,
    /// move_pages(2), between NUMA nodes of the host.
    Node,
}

impl EngineName {
    /// Every engine with its name on the command line.
    pub const NAMES: [(&'static str, Self); 3] =
        [("move", Self::Move), ("remap", Self::Remap), ("node", Self::Node)];
}

impl fmt::Display for EngineName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::NAMES.iter().find(|(_, engine)| engine == self).map_or("", |(n, _)| n);
        f.write_str(name)
    }
}

impl FromStr for EngineName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::NAMES.iter().find(|(name, _)| *name == text);
        found
            .map(|(_, engine)| *engine)
            .ok_or_else(|| format!("\"{text}\" is none of move, remap, node"))
    }
}

/// One granule's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// Which.
    pub(crate) granule: Granule,
    /// Where it is; never [`Place::Untouched`].
    pub(crate) from: Place,
    /// Whether the guest has it mapped there.
    pub(crate) from_mapped: bool,
    /// Where it goes; never [`Place::Untouched`].
    pub(crate) to: Place,
    /// Whether the guest is to have it mapped there.
    pub(crate) to_mapped: bool,
}

/// What ends the process, because guest memory could not be made whole.
pub(crate) type Fatal = fn(&str) -> !;

/// An engine. Calls for different granules may come from several threads at
/// a time.
pub(crate) trait Engine: fmt::Debug + Send + Sync {
    /// Makes the pages of `range`, which the guest has had to itself so far,
    /// present, and watches them from now on.
    fn adopt(&self, range: HvaRange) -> Result<(), Errno>;

    /// Whether a granule that nobody moved yet must be adopted first.
    fn adopts(&self) -> bool;

    /// Whether the tiers' userfaultfd watches what it moves, so that no other
    /// one can.
    fn is_watched(&self) -> bool {
        true
    }

    /// Whether it has the guest's memory in huge pages where it can, and cannot
    /// look at them without taking them apart.
    fn wants_huge_pages(&self) -> bool {
        false
    }

    /// Whether any page of a granule that nobody moved yet exists.
    fn exists(&self, granule: Granule) -> bool;

    /// Carries `steps` out and puts what came of each into `outcomes`, in
    /// order: [`Outcome::Moved`], or why it is where it was. What somebody
    /// waits for comes first.
    fn transfer(&self, steps: &[Step], waiters: &Waiters<'_>, outcomes: &mut Vec<Outcome>);

    /// Makes first touches of `range` come as events.
    fn watch_first_touch(&self, range: HvaRange) -> Result<(), Errno>;

    /// Gives a granule that nobody ever touched zeroed memory at `to` and
    /// wakes whoever waits for it. At home that takes no VMA.
    fn place_first(&self, granule: Granule, to: Place) -> Result<(), Errno>;

    /// Whether [`Engine::set_aside`] works.
    fn sets_aside(&self) -> bool {
        false
    }

    /// Whether a granule that is set aside keeps its mapping, so that it moves as
    /// any other that is mapped.
    fn aside_is_mapped(&self) -> bool {
        false
    }

    /// Bytes of a granule that are set aside at a time, at the most.
    fn set_aside_at_most(&self) -> u64 {
        u64::MAX
    }

    /// Serves a touch of a page that is there and was not mapped, of a granule
    /// at `place` that nobody moves meanwhile.
    fn map_in(&self, _granule: Granule, _place: Place, _page: Hva) {}

    /// Takes a granule, mapped at `place` and claimed, from the guest without
    /// moving its contents: from then on a touch of it, also a read, comes as
    /// an event. On an error it is mapped as before.
    fn set_aside(&self, _granule: Granule, _place: Place) -> Result<(), Errno> {
        Err(Errno::NOSYS)
    }

    /// Gives the guest a granule back that was set aside at `place` and is
    /// claimed, and wakes whoever waits for it.
    fn bring_back(&self, _granule: Granule, _place: Place) {}

    /// Whether it can leave granules unmapped in a frame on this way.
    fn can(&self, step: &Step) -> bool;

    /// Places whose host memory was found to have failed while one of `granules`,
    /// which the caller has claimed, was there or was to go there; each is told
    /// once.
    fn losses(&self, _: &mut dyn Iterator<Item = Granule>) -> Vec<(Granule, Place)> {
        Vec::new()
    }

    /// Gives the host memory of a pool back, whose frames are all free and stay
    /// so; what is handed out later gets memory anew. Bytes that came free.
    ///
    /// # Errors
    /// What the kernel said.
    fn release_pool(&self, _: PoolId) -> Result<u64, Errno> {
        Ok(0)
    }

    /// Bytes of host memory that a step takes which nobody had before, at the
    /// most, as far as a memory cgroup is charged for them.
    fn takes(&self, _: &Step) -> u64 {
        0
    }

    /// Has a pool without users or memory get its memory from `node` from now on;
    /// `None`: from anywhere.
    ///
    /// # Errors
    /// EOPNOTSUPP: its memory is of another kind; or mbind(2)'s.
    fn place_pool(&self, _: PoolId, _: Option<u32>) -> Result<(), Errno> {
        Err(Errno::OPNOTSUPP)
    }

    /// Whether a pool gives its memory back when it is released, so that it can
    /// have less.
    fn gives_back(&self, _: PoolId) -> bool {
        true
    }

    /// Which nodes the tiers are on.
    fn placement(&self) -> Arc<Placement> {
        Arc::default()
    }

    /// Where memory is that the guest does not have mapped.
    fn rows(&self) -> Vec<Row<'_>> {
        Vec::new()
    }

    /// Whether the host memory of a pool is still to be had. Of a device that was
    /// taken from its driver it is not, and never is again.
    fn has_memory(&self, _: PoolId) -> bool {
        true
    }

    /// Whether any pool is such a device.
    fn may_lose_pools(&self) -> bool {
        false
    }

    /// Puts memory that has failed where the guest has `granule`, which is in a
    /// pool whose memory is gone, and which nobody moves: a touch is a machine
    /// check then. One at a time; again is no error.
    ///
    /// # Errors
    /// It cannot be marked (before Linux 6.6): KVM_RUN fails at a touch.
    fn give_up(&self, _: Granule) -> Result<(), Errno> {
        Err(Errno::NOSYS)
    }

    /// A pool whose memory was given back hands frames out again from now on.
    ///
    /// # Errors
    /// What the kernel said.
    fn restore_pool(&self, _: PoolId) -> Result<(), Errno> {
        Ok(())
    }

    /// VMAs that a run of granules of its own may add to the process.
    fn vmas_per_run(&self) -> u64;

    /// How long vCPUs were parked for moves; `None` where they never are.
    fn stalls(&self) -> Option<Stalls> {
        None
    }

    /// Asks the kernel where granules are.
    ///
    /// # Errors
    /// The kernel does not tell.
    fn verifier(&self) -> Result<Verifier<'_>, Errno>;
}

/// Says of a settled granule, whose place and whether the guest has it mapped
/// there are given, what the kernel knows.
pub(crate) type Verifier<'a> = Box<dyn FnMut(Granule, Place, bool) -> Result<Verdict, Errno> + 'a>;

/// What the kernel knows of a granule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// What is not as the table says.
    pub(crate) wrong: Option<String>,
    /// Bytes of it in huge pages.
    pub(crate) huge: u64,
}

/// How often a call that the kernel answers with EAGAIN is tried again: it
/// does so while it looks at a page itself.
pub(crate) const TRIES: u32 = 200;

/// The outcome that stands for an error of the kernel.
pub(crate) fn outcome_of(errno: Errno) -> Outcome {
    match errno {
        Errno::NOMEM => Outcome::NoFrame,
        Errno::AGAIN | Errno::BUSY | Errno::NOENT | Errno::INTR => Outcome::Busy,
        // Pages that have failed are not moved.
        Errno::FAULT => Outcome::Poisoned,
        _ => Outcome::CopyFailed,
    }
}

/// Index ranges of `items` that can be handled by one call: alive, and each
/// with both addresses `stride` after its predecessor's.
pub(crate) fn runs<T>(
    items: &[T],
    stride: usize,
    alive: impl Fn(usize, &T) -> bool,
    addresses: impl Fn(&T) -> (usize, usize),
) -> Vec<std::ops::Range<usize>> {
    let mut found: Vec<std::ops::Range<usize>> = Vec::new();
    for (index, item) in items.iter().enumerate() {
        if !alive(index, item) {
            continue;
        }
        let follows = |last: &std::ops::Range<usize>| {
            let (a, b) = addresses(&items[index - 1]);
            last.end == index && addresses(item) == (a + stride, b + stride)
        };
        match found.last_mut() {
            Some(last) if follows(last) => last.end += 1,
            _ => found.push(index..index + 1),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_end_where_either_address_jumps_or_an_item_is_out() {
        let items = [(0, 100), (10, 110), (20, 130), (30, 140), (40, 150)];
        let all = runs(&items, 10, |_, _| true, |item| *item);
        assert_eq!(all, [0..2, 2..5]);
        let without = runs(&items, 10, |index, _| index != 3, |item| *item);
        assert_eq!(without, [0..2, 2..3, 4..5]);
    }
}
