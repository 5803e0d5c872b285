//! Whether the kernel agrees on how much memory each tier has.
//!
//! Neap knows, bit by bit, which frames and home pages it gave memory, and
//! counts them ([`believed`]); the kernel is asked the same of the same memory
//! ([`found`]), by means that have nothing to do with those bits:
//!
//! | memory | asked |
//! |---|---|
//! | private (anon, node) | the page tables of guest and rows, by `PAGEMAP_SCAN`; beside it `Rss`, `Swap` and `AnonHugePages` of just these mappings (smaps), and where tiers are on nodes the bytes on each (numa_maps) |
//! | files (memfd, hugetlb) | `st_blocks`, less the data of what nobody has moved (`SEEK_DATA`, or mincore(2) for huge pages); huge pages that are promised to Neap must be free and reserved |
//! | /dev/dax | the size of the device |
//!
//! Memory that vCPUs got by touching it and that nobody has moved is known to
//! the kernel alone. It is told, as `untouched`, and compared with nothing.
//!
//! Nothing is locked meanwhile. An answer counts as *settled* if nothing was in
//! motion, the table and the bits were the same before and after, and the kernel
//! said the same twice; it is tried [`TRIES`] times. Numbers that are not settled
//! are told and not judged.
//!
//! Known hole: pages that have failed are given up, so after a failure of host
//! memory a difference of a few pages is right.

mod believed;
mod found;

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::thread;
use std::time::Duration;

use rustix::io::Errno;

use super::Tiers;
use super::core::lock;
use crate::account::cgroup::Usage;
use crate::account::hugepages::HugePages;
use crate::account::mappings::{self, Resident};
use crate::addr::HUGE_PAGE_SIZE;
use crate::backing::Backing;
use crate::engine::rows::Row;
use crate::granule::{Granule, PoolId};
use crate::hva::HvaRange;
use crate::table::Place;
use found::Found;

/// How often it is tried to find everything at rest.
const TRIES: u32 = 10;
/// Between two tries.
const AGAIN: Duration = Duration::from_millis(10);

/// The memory of one tier, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TierAccount {
    /// The region; `None`: home.
    pub pool: Option<PoolId>,
    /// Host memory behind it.
    pub backing: Backing,
    /// The most that it may have.
    pub limit: u64,
    /// What Neap gave it.
    pub believed: u64,
    /// What the kernel says of the same.
    pub found: u64,
    /// What of it the kernel has taken back because it held zeros; it is had
    /// again by a write.
    pub zeros: u64,
    /// What the guest got by itself, as the kernel says.
    pub untouched: u64,
}

/// All of it.
#[derive(Clone, Debug, Default)]
pub struct Accounts {
    /// Whether everything was at rest; otherwise nothing is judged.
    pub settled: bool,
    /// Home, then each region.
    pub tiers: Vec<TierAccount>,
    /// Mappings of guest memory and rows, if they can be told apart.
    pub resident: Option<Resident>,
    /// Bytes of them on each NUMA node, if the kernel says.
    pub nodes: BTreeMap<u32, u64>,
    /// The host's huge pages, if any tier has some.
    pub huge_pages: Option<HugePages>,
    /// Of these, promised to Neap and not used yet.
    pub promised: u64,
    /// Memory cgroups, of the process and above.
    pub cgroups: Vec<Usage>,
    /// Where the kernel says otherwise, a line each.
    pub differences: Vec<String>,
}

/// One look.
struct Look {
    accounts: Accounts,
    found: Found,
}

impl Tiers {
    /// Asks the kernel how much memory each tier has, for as long as it is
    /// `wanted`.
    ///
    /// # Errors
    /// The kernel does not tell; ENOTTY before Linux 6.7 of private memory.
    pub fn account(&self, wanted: &dyn Fn() -> bool) -> Result<Accounts, Errno> {
        let rows = self.core.engine.rows();
        let mut accounts = Accounts::default();
        for attempt in 0..TRIES {
            if attempt > 0 {
                thread::sleep(AGAIN);
            }
            let before = self.mark(&rows);
            let look = self.look(&rows)?;
            let again = self.find(&rows)?;
            accounts = look.accounts;
            accounts.settled =
                before.is_some() && before == self.mark(&rows) && again == look.found;
            if accounts.settled {
                self.judge(&mut accounts, &look.found);
            }
            if accounts.settled || !wanted() {
                break;
            }
        }
        accounts.cgroups = self.config.cgroups.clone().usage();
        Ok(accounts)
    }

    /// Something that is another once anything has moved; `None` while something
    /// does.
    fn mark(&self, rows: &[Row<'_>]) -> Option<u64> {
        let core = &self.core;
        // Its rows change under nobody's claim.
        drop(self.plugging.try_lock().ok()?);
        let mut mark = DefaultHasher::new();
        for part in core.space.parts() {
            let end = Granule(part.first + part.count);
            for (granules, view) in core.table.runs(Granule(part.first), end) {
                if view.moving {
                    return None;
                }
                let place = match view.place {
                    Place::Untouched => (0u8, 0, 0),
                    Place::Home => (1, 0, 0),
                    Place::Device { pool, frame } => (2, pool.0, frame.0),
                };
                (granules.start, granules.end, place, view.mapped).hash(&mut mark);
            }
        }
        rows.iter().for_each(|row| row.slots.count_backed().hash(&mut mark));
        let counts = core.counters.read();
        (counts.outcomes, counts.first_touches, counts.heat.watched).hash(&mut mark);
        Some(mark.finish())
    }

    fn look(&self, rows: &[Row<'_>]) -> Result<Look, Errno> {
        let found = self.find(rows)?;
        let believed = self.believe(rows);
        let (core, bytes) = (&self.core, self.core.space.size().bytes());
        let tier = |index: usize, pool: Option<PoolId>, backing, limit| TierAccount {
            pool,
            backing,
            limit,
            believed: believed.get(index).copied().unwrap_or(0),
            found: found.given.get(index).copied().unwrap_or(0),
            zeros: found.zeros.get(index).copied().unwrap_or(0),
            untouched: found.untouched.get(index).copied().unwrap_or(0),
        };
        let all = core.space.parts().iter().map(|part| part.range.size()).sum();
        let mut tiers = vec![tier(0, None, self.config.ram, all)];
        let backings = lock(&self.backings).clone();
        for (index, backing) in backings.into_iter().enumerate() {
            let frames = core.pools.get(index).map_or(0, |pool| lock(pool).frames());
            let limit = u64::from(frames) * bytes;
            // There are at the most 255 regions.
            tiers.push(tier(index + 1, Some(PoolId(index as u8)), backing, limit));
        }
        let ranges = self.ranges(rows);
        let is_huge = |tier: &TierAccount| tier.backing == Backing::Hugetlb;
        let huge_pages = tiers.iter().any(is_huge).then(HugePages::read);
        let promised = self.promised(rows)? / HUGE_PAGE_SIZE;
        let accounts = Accounts {
            tiers,
            resident: mappings::resident(&ranges).ok().flatten(),
            nodes: mappings::on_nodes(&ranges).ok().flatten().unwrap_or_default(),
            huge_pages,
            promised,
            ..Accounts::default()
        };
        Ok(Look { accounts, found })
    }

    /// All that guest and tiers have mapped.
    fn ranges(&self, rows: &[Row<'_>]) -> Vec<HvaRange> {
        let space = &self.core.space;
        let guest = space
            .parts()
            .iter()
            .map(|part| HvaRange::new(part.hva, part.count as usize * space.bytes()));
        guest.chain(rows.iter().map(|row| row.slots.range())).collect()
    }

    fn judge(&self, accounts: &mut Accounts, found: &Found) {
        let mut wrong = Vec::new();
        for tier in &accounts.tiers {
            let name = match tier.pool {
                None => "home".to_owned(),
                Some(PoolId(id)) => format!("region {id}"),
            };
            let (believed, found) = (tier.believed, tier.found + tier.zeros);
            if believed != found {
                wrong.push(format!("{name} should have {believed} bytes and has {found}"));
            }
            let (all, limit) = (tier.found + tier.untouched, tier.limit);
            if all > limit {
                wrong.push(format!("{name} has {all} bytes and may have {limit}"));
            }
        }
        if found.astray > 0 {
            let astray = found.astray;
            wrong.push(format!("{astray} bytes are mapped where the guest should have none"));
        }
        if self.config.ram.is_anonymous()
            && let Some(resident) = accounts.resident
        {
            self.judge_private(accounts, resident, found, &mut wrong);
        }
        let promised = accounts.promised;
        if let Some(pool) =
            accounts.huge_pages.filter(|pool| pool.reserved.min(pool.free) < promised)
        {
            wrong.push(format!(
                "{promised} huge pages are promised, and the host has {} reserved and {} free",
                pool.reserved, pool.free
            ));
        }
        accounts.differences = wrong;
    }

    /// What smaps and numa_maps say of private memory, all of it.
    fn judge_private(
        &self,
        accounts: &Accounts,
        resident: Resident,
        found: &Found,
        wrong: &mut Vec<String>,
    ) {
        let all = found.private();
        let mapped = resident.rss + resident.swap;
        if mapped != all {
            wrong.push(format!("smaps has {mapped} bytes of guest and rows, page tables {all}"));
        }
        if resident.anon_huge != found.huge {
            let (smaps, tables) = (resident.anon_huge, found.huge);
            wrong.push(format!("smaps has {smaps} bytes in huge pages, page tables {tables}"));
        }
        let placement = self.core.engine.placement();
        if placement.home.is_empty() || accounts.nodes.is_empty() || resident.swap > 0 {
            return;
        }
        // Tiers on the same nodes are one.
        let mut expected: BTreeMap<&[u32], u64> = BTreeMap::new();
        for tier in &accounts.tiers {
            let nodes = tier.pool.map_or(&*placement.home, |pool| placement.of_pool(pool));
            *expected.entry(nodes).or_default() += tier.found + tier.untouched;
        }
        let nodes: Vec<u32> = expected.keys().copied().flatten().copied().collect();
        let apart = nodes.iter().all(|node| nodes.iter().filter(|n| *n == node).count() == 1);
        if !apart || expected.contains_key(&[][..]) {
            return;
        }
        for (nodes, expected) in expected {
            let there: u64 = nodes.iter().filter_map(|node| accounts.nodes.get(node)).sum();
            if there != expected {
                wrong.push(format!(
                    "nodes {nodes:?} should have {expected} bytes, and numa_maps has {there}"
                ));
            }
        }
    }
}
