//! The `node` engine, for tiers that are NUMA nodes of the host: a granule
//! stays at its address, and move_pages(2) has the kernel put its pages on
//! another node.
//!
//! A frame is room on a node, not an address: the pool counts frames, the
//! kernel picks pages. Nothing is frozen here, because the kernel itself holds
//! accesses off while it copies a page. It moves whole folios, so granules are
//! 2 MiB, and what the guest has is never unmapped, so no pool is `private`.
//!
//! Invariant: a granule that is not in motion has all its pages on nodes of the
//! place that the table names.
//!
//! Known hole: pages that moved, of a granule whose others cannot, are moved
//! back; if that fails too, which takes a page that somebody holds and a full
//! node, they stay where they are, and verification names them.

use std::sync::Arc;
use std::thread;

use rustix::io::Errno;

use super::hooks::{Hooks, Inject, Point};
use super::hurry::Waiters;
use super::{Engine, Fatal, Step, Verdict, Verifier, memory, outcome_of};
use crate::granule::{Granule, PoolId};
use crate::hva::HvaRange;
use crate::migrate::Outcome;
use crate::numa::{Placed, Placement, calls};
use crate::space::{Origin, Part, Space};
use crate::table::Place;

/// How often pages that did not move are tried again. The kernel tries each
/// ten times itself (`NR_MAX_MIGRATE_PAGES_RETRY` in mm/migrate.c).
const TRIES: u32 = 8;

/// The engine.
#[derive(Debug)]
pub(crate) struct NodeEngine {
    space: Arc<Space>,
    placement: Placed,
    /// Whether granules are to be huge pages.
    huge: bool,
    hooks: Arc<dyn Hooks>,
    fatal: Fatal,
}

/// A granule's pages, and where they are to go.
struct Load {
    pages: Vec<usize>,
    node: i32,
}

/// What of a granule is where it was to go.
enum Arrived {
    All,
    /// None, with a status of one of them.
    None(i32),
    Some(i32),
}

impl NodeEngine {
    /// An engine over `space`, whose tiers are on nodes each.
    pub(crate) fn new(
        space: Arc<Space>,
        placement: Placement,
        huge: bool,
        hooks: Arc<dyn Hooks>,
        fatal: Fatal,
    ) -> Self {
        for part in space.parts() {
            let range = HvaRange::new(part.hva, part.count as usize * space.bytes());
            // EINVAL: this host has no transparent huge pages; small ones serve.
            let _ = memory::advise_huge(range, huge);
        }
        Self { space, placement: Placed::new(placement), huge, hooks, fatal }
    }

    fn guest(&self, granule: Granule) -> HvaRange {
        let hva = self.space.hva(granule);
        let hva = hva.unwrap_or_else(|| (self.fatal)("a granule outside of guest memory"));
        HvaRange::new(hva, self.space.bytes())
    }

    /// The node that a granule goes to. Home may be several, in turn.
    fn node(&self, granule: Granule, place: Place) -> Option<i32> {
        let placement = self.placement.now();
        let nodes = placement.of(place);
        let node = nodes.get(granule.0 as usize % nodes.len().max(1))?;
        i32::try_from(*node).ok()
    }

    /// Has the pages of a region's window come from `nodes`.
    fn bind_window(&self, pool: PoolId, nodes: &[u32]) -> Result<(), Errno> {
        let window = |part: &&Part| part.origin == Origin::Window(pool);
        for part in self.space.parts().iter().filter(window) {
            let range = HvaRange::new(part.hva, part.count as usize * self.space.bytes());
            if !nodes.is_empty() {
                calls::bind_new(range, nodes)?;
            }
        }
        Ok(())
    }

    /// What speaks against a step before anything is done.
    fn refusal(&self, step: &Step) -> Option<Outcome> {
        if !self.can(step) {
            return Some(Outcome::WrongKind);
        }
        [Point::Populate, Point::Freeze, Point::Copy, Point::Arrive].into_iter().find_map(|point| {
            match (self.hooks.at(point, step.granule), point) {
                (Inject::Fail(_) | Inject::Short(_), Point::Copy) => Some(Outcome::CopyFailed),
                (Inject::Fail(errno) | Inject::Short(errno), _) => Some(outcome_of(errno)),
                (Inject::Poison, _) => Some(Outcome::Poisoned),
                (Inject::Nothing | Inject::Omit, _) => None,
            }
        })
    }

    fn load(&self, step: &Step, place: Place) -> Result<Load, Outcome> {
        let node = self.node(step.granule, place).ok_or(Outcome::WrongKind)?;
        let pages = memory::pages_of(self.guest(step.granule)).map_err(outcome_of)?;
        // Swapped out since it was adopted, or given back by the guest.
        if pages.is_empty() { Err(Outcome::Untouched) } else { Ok(Load { pages, node }) }
    }

    /// Moves a granule that others were not moved together with.
    fn move_one(&self, load: &Load) -> Result<(), Outcome> {
        let mut last = Outcome::Busy;
        for _ in 0..TRIES {
            let nodes = vec![load.node; load.pages.len()];
            let answer = calls::move_pages(&load.pages, &nodes);
            match look(load) {
                Arrived::All => return Ok(()),
                Arrived::None(status) | Arrived::Some(status) => {
                    last = match answer {
                        Err(errno) => refused(errno),
                        // Of a page that did not move the call may say why.
                        Ok((told, _)) => told
                            .iter()
                            .copied()
                            .find(|status| *status < 0 && *status != calls::UNTOLD)
                            .map_or_else(|| of_status(status), of_status),
                    };
                }
            }
            match last {
                Outcome::Busy => thread::yield_now(),
                _ => break,
            }
        }
        Err(last)
    }

    /// Moves one that did not come with the others; whole back if it cannot.
    fn finish(&self, step: &Step, load: &Load) -> Outcome {
        let Err(outcome) = self.move_one(load) else { return Outcome::Moved };
        if let Arrived::None(_) = look(load) {
            return outcome;
        }
        // A folio that was split on the way has more pages than before.
        if let Ok(back) = self.load(step, step.from) {
            // The hole that the top of this file tells of.
            let _ = self.move_one(&back);
        }
        outcome
    }
}

/// Where the pages of a granule are now.
fn look(load: &Load) -> Arrived {
    let Ok(status) = calls::nodes_of(&load.pages) else { return Arrived::Some(-libc::EIO) };
    let elsewhere = status.iter().filter(|node| **node != load.node);
    match (elsewhere.clone().count(), elsewhere.min()) {
        (_, None) => Arrived::All,
        (count, Some(status)) if count == load.pages.len() => Arrived::None(*status),
        (_, Some(status)) => Arrived::Some(*status),
    }
}

/// The outcome of a page that did not move.
fn of_status(status: i32) -> Outcome {
    match -status {
        libc::ENOENT | libc::EFAULT => Outcome::Untouched,
        libc::ENOMEM => Outcome::NoFrame,
        // EBUSY, EAGAIN; EACCES of a page that is shared; none at all.
        _ => Outcome::Busy,
    }
}

/// The outcome of a call that the kernel refused.
fn refused(errno: Errno) -> Outcome {
    match errno {
        // The node went offline, or this process may not use it.
        Errno::NODEV | Errno::ACCESS | Errno::NOMEM => Outcome::NoFrame,
        other => outcome_of(other),
    }
}

impl Engine for NodeEngine {
    fn adopt(&self, range: HvaRange) -> Result<(), Errno> {
        memory::populate(range)?;
        if self.huge && memory::present(range).is_ok_and(|found| found.huge < range.len() as u64) {
            // A page that stays small moves all the same, only slower.
            let _ = memory::collapse(range);
        }
        Ok(())
    }

    fn is_watched(&self) -> bool {
        false
    }

    fn wants_huge_pages(&self) -> bool {
        self.huge
    }

    fn adopts(&self) -> bool {
        // A page that came later would come from home.
        true
    }

    fn exists(&self, granule: Granule) -> bool {
        memory::any_present(self.guest(granule))
    }

    fn transfer(&self, steps: &[Step], _: &Waiters<'_>, outcomes: &mut Vec<Outcome>) {
        let loads: Vec<_> = steps
            .iter()
            .map(|step| match self.refusal(step) {
                Some(outcome) => Err(outcome),
                None => self.load(step, step.to),
            })
            .collect();
        let ready = || loads.iter().flatten();
        let pages: Vec<usize> = ready().flat_map(|load| &load.pages).copied().collect();
        let nodes: Vec<i32> =
            ready().flat_map(|load| std::iter::repeat_n(load.node, load.pages.len())).collect();
        if !pages.is_empty() {
            // What it says of the whole is less than what is found of each.
            let _ = calls::move_pages(&pages, &nodes);
        }
        outcomes.extend(steps.iter().zip(&loads).map(|(step, load)| match load {
            Err(outcome) => *outcome,
            Ok(load) => match look(load) {
                Arrived::All => Outcome::Moved,
                Arrived::None(_) | Arrived::Some(_) => self.finish(step, load),
            },
        }));
    }

    fn watch_first_touch(&self, _: HvaRange) -> Result<(), Errno> {
        Err(Errno::NOTSUP)
    }

    fn place_first(&self, _: Granule, _: Place) -> Result<(), Errno> {
        Err(Errno::NOTSUP)
    }

    fn can(&self, step: &Step) -> bool {
        step.from_mapped && step.to_mapped
    }

    fn release_pool(&self, pool: PoolId) -> Result<u64, Errno> {
        // What came home has left the node already. What comes into the window
        // from now on, from swap for instance, is not to come from there.
        self.bind_window(pool, &self.placement.now().home)?;
        Ok(0)
    }

    fn restore_pool(&self, pool: PoolId) -> Result<(), Errno> {
        self.bind_window(pool, self.placement.now().of_pool(pool))
    }

    fn place_pool(&self, pool: PoolId, node: Option<u32>) -> Result<(), Errno> {
        // A frame is room on a node here.
        let node = node.ok_or(Errno::OPNOTSUPP)?;
        self.placement.set_pool(pool, Some(node));
        Ok(())
    }

    fn placement(&self) -> Arc<Placement> {
        self.placement.now()
    }

    fn vmas_per_run(&self) -> u64 {
        0
    }

    fn verifier(&self) -> Result<Verifier<'_>, Errno> {
        let bytes = self.space.bytes() as u64;
        let placement = self.placement.now();
        Ok(Box::new(move |granule, place, _| {
            let guest = self.guest(granule);
            let found = memory::present(guest)?;
            let wrong = match found.bytes {
                there if there == bytes => {
                    placement.misplaced(guest, place, found.huge == bytes)?
                }
                there => Some(format!("{there} bytes of it are present")),
            };
            Ok(Verdict { wrong, huge: found.huge })
        }))
    }
}
