//! Granules in order of their last touch: a doubly linked list over arrays.

/// No granule.
const NONE: u32 = u32::MAX;

#[derive(Clone, Debug)]
pub(super) struct Order {
    /// Older and newer neighbour of each granule.
    links: Vec<(u32, u32)>,
    inside: Vec<bool>,
    oldest: u32,
    newest: u32,
    count: u32,
}

impl Order {
    pub(super) fn new(granules: u32) -> Self {
        let count = granules as usize;
        Self {
            links: vec![(NONE, NONE); count],
            inside: vec![false; count],
            oldest: NONE,
            newest: NONE,
            count: 0,
        }
    }

    pub(super) fn has(&self, granule: u32) -> bool {
        self.inside.get(granule as usize).copied().unwrap_or(false)
    }

    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// Puts a granule in front of all others.
    pub(super) fn touch(&mut self, granule: u32) {
        self.remove(granule);
        let at = granule as usize;
        if at >= self.links.len() {
            return;
        }
        self.links[at] = (self.newest, NONE);
        match self.newest {
            NONE => self.oldest = granule,
            newest => self.links[newest as usize].1 = granule,
        }
        self.newest = granule;
        self.inside[at] = true;
        self.count += 1;
    }

    pub(super) fn remove(&mut self, granule: u32) {
        if !self.has(granule) {
            return;
        }
        let (older, newer) = self.links[granule as usize];
        match older {
            NONE => self.oldest = newer,
            older => self.links[older as usize].1 = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => self.links[newer as usize].0 = older,
        }
        self.inside[granule as usize] = false;
        self.count -= 1;
    }

    /// Takes the one that was not touched for longest.
    pub(super) fn take_oldest(&mut self) -> Option<u32> {
        let oldest = self.oldest;
        (oldest != NONE).then(|| {
            self.remove(oldest);
            oldest
        })
    }
}
