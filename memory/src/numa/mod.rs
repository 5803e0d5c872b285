//! NUMA nodes of the host as tiers: which there are and how much room they
//! have ([`nodes`]), and the kernel's calls about where pages are ([`calls`]).

pub mod calls;
pub mod nodes;

use std::sync::{Arc, Mutex, PoisonError};

use rustix::io::Errno;

use crate::granule::PoolId;
use crate::hva::HvaRange;
use crate::table::Place;

/// Which nodes pages of each tier belong on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// Of home. Empty: anywhere.
    pub home: Vec<u32>,
    /// Of each pool; `None`: anywhere.
    pub pools: Vec<Option<u32>>,
}

/// A [`Placement`] that may become another, when a region gets memory of
/// another node. Nobody waits for anybody but for a copy of an `Arc`.
#[derive(Debug)]
pub struct Placed(Mutex<Arc<Placement>>);

impl Placed {
    /// As at first.
    pub fn new(placement: Placement) -> Self {
        Self(Mutex::new(Arc::new(placement)))
    }

    /// As it is now.
    pub fn now(&self) -> Arc<Placement> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Has a pool on another node.
    pub fn set_pool(&self, pool: PoolId, node: Option<u32>) {
        let mut now = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = Arc::make_mut(&mut now).pools.get_mut(usize::from(pool.0)) {
            *entry = node;
        }
    }
}

impl Placement {
    /// The nodes for tiers whose pools are on `pools`: home is on `ram` if that
    /// is said, or else on the nodes with processors that are no pool's, so
    /// that moving there is a move.
    pub fn new(ram: Option<u32>, pools: Vec<Option<u32>>) -> Self {
        let home = match (ram, pools.iter().flatten().next()) {
            (Some(node), _) => vec![node],
            (None, None) => Vec::new(),
            (None, Some(_)) => {
                let near = nodes::with_cpus();
                let free = near.iter().filter(|node| !pools.contains(&Some(**node)));
                let free: Vec<u32> = free.copied().collect();
                if free.is_empty() { near } else { free }
            }
        };
        Self { home, pools }
    }

    /// Nodes of `place`. Empty: anywhere.
    pub fn of(&self, place: Place) -> &[u32] {
        match place {
            Place::Home | Place::Untouched => &self.home,
            Place::Device { pool, .. } => self.of_pool(pool),
        }
    }

    /// Nodes of a pool. Empty: anywhere.
    pub fn of_pool(&self, pool: PoolId) -> &[u32] {
        self.pools
            .get(usize::from(pool.0))
            .and_then(Option::as_ref)
            .map_or(&[], std::slice::from_ref)
    }

    /// What of `range`, memory that belongs to `place`, the kernel has on
    /// another node. `huge`: all of it is in huge pages.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn misplaced(
        &self,
        range: HvaRange,
        place: Place,
        huge: bool,
    ) -> Result<Option<String>, Errno> {
        let nodes = self.of(place);
        if nodes.is_empty() {
            return Ok(None);
        }
        let pages = calls::pages(range, huge);
        let status = calls::nodes_of(&pages)?;
        let wrong = |status: &i32| u32::try_from(*status).is_ok_and(|node| !nodes.contains(&node));
        Ok(status.iter().find(|status| wrong(status)).map(|node| {
            let count = status.iter().filter(|status| wrong(status)).count();
            let of = status.len();
            format!("{count} of its {of} pages are on other nodes than {nodes:?}, as {node}")
        }))
    }
}
