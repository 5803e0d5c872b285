//! The optimum in hindsight.

use super::{Access, Side, Trace};

/// For each phase the granules with most touches in it.
#[derive(Clone, Debug)]
pub struct Optimum {
    phase: u32,
    window: u32,
    /// Sets by phase, a bool a granule.
    best: Vec<Vec<bool>>,
}

impl Optimum {
    /// The optimum for a trace in phases of `phase` windows (0: one phase),
    /// with room for `room` granules. Touches of scans count as well.
    pub fn new(trace: &mut dyn Trace, phase: u32, room: u32) -> Self {
        let granules = trace.granules() as usize;
        let (mut best, mut counts) = (Vec::new(), vec![0u64; granules]);
        let mut window = Vec::new();
        let mut number = 0;
        trace.restart();
        while trace.next(&mut window) {
            if phase > 0 && number > 0 && number % phase == 0 {
                best.push(top(&counts, room));
                counts.fill(0);
            }
            for access in &window {
                if let Some(count) = counts.get_mut(access.granule as usize) {
                    *count += 1;
                }
            }
            number += 1;
        }
        best.push(top(&counts, room));
        Self { phase, window: 0, best }
    }
}

/// The `room` granules with most touches.
fn top(counts: &[u64], room: u32) -> Vec<bool> {
    let mut order: Vec<usize> = (0..counts.len()).filter(|index| counts[*index] > 0).collect();
    order.sort_by_key(|index| std::cmp::Reverse(counts[*index]));
    let mut set = vec![false; counts.len()];
    for index in order.into_iter().take(room as usize) {
        set[index] = true;
    }
    set
}

impl Side for Optimum {
    fn is_fast(&self, granule: u32) -> bool {
        let phase = self.window.checked_div(self.phase).unwrap_or(0) as usize;
        self.best.get(phase).and_then(|set| set.get(granule as usize)).copied().unwrap_or(false)
    }

    fn touch(&mut self, _: Access, _: u32, _: u32) {}

    fn tick(&mut self) {
        self.window += 1;
    }

    fn moved(&self) -> u64 {
        0
    }
}
