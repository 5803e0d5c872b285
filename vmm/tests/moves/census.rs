//! How often each single granule moved, from what the tiers say of where it
//! is. Moves that nobody looked at in between are not counted, so the counts
//! are from below.

use neap_memory::tiers::Tiers;

pub(crate) struct Census {
    granule: u64,
    away: Vec<bool>,
    out: Vec<u32>,
    home: Vec<u32>,
}

impl Census {
    /// Of tiers whose granules have `granule` bytes.
    pub(crate) fn new(tiers: &Tiers, granule: u64) -> Self {
        let mut census = Self { granule, away: Vec::new(), out: Vec::new(), home: Vec::new() };
        census.away = census.places(tiers);
        census.out = vec![0; census.away.len()];
        census.home = census.out.clone();
        census
    }

    /// Whether each granule is in a device frame.
    fn places(&self, tiers: &Tiers) -> Vec<bool> {
        let runs = tiers.residency();
        let granules = runs.iter().flat_map(|run| {
            std::iter::repeat_n(run.place.is_device(), (run.range.size() / self.granule) as usize)
        });
        granules.collect()
    }

    /// Looks where everything is.
    pub(crate) fn look(&mut self, tiers: &Tiers) {
        let now = self.places(tiers);
        assert_eq!(now.len(), self.away.len());
        for (index, away) in now.iter().enumerate() {
            match (self.away[index], *away) {
                (false, true) => self.out[index] += 1,
                (true, false) => self.home[index] += 1,
                _ => {}
            }
        }
        self.away = now;
    }

    /// Moves of the granule that moved least, out and home.
    pub(crate) fn least(&self) -> (u32, u32) {
        let least = |counts: &[u32]| counts.iter().copied().min().unwrap_or(0);
        (least(&self.out), least(&self.home))
    }

    /// Least moves among the last `count` granules, out and home.
    pub(crate) fn moves_of_last(&self, count: usize) -> (u32, u32) {
        let least = |counts: &[u32]| counts[counts.len() - count..].iter().copied().min();
        (least(&self.out).unwrap_or(0), least(&self.home).unwrap_or(0))
    }
}
