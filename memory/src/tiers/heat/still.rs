//! Holding vCPUs still while many granules are taken from the guest or given back.
//!
//! Each of them alone interrupts every vCPU that is in the guest, and throws out
//! all of its TLB entries; who is held is interrupted once for all. On the build
//! machine that is most of what a look at an idle granule costs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::park::{Park, Parked};

/// Granules from which on a hold costs less than the interrupts.
const WORTH: usize = 3;
/// A vCPU that has no processor is not waited for; the others stand still
/// meanwhile.
const PATIENCE: Duration = Duration::from_millis(1);
/// Longest that vCPUs are held: a granule may take long, behind somebody else's
/// call about this process's memory, and then they had better wait for it alone.
const LONGEST: Duration = Duration::from_millis(2);
/// Holds that are passed over after one that came to nothing: the machine is busy.
const PASSED_OVER: u32 = 64;

/// Whoever can hold vCPUs.
pub(super) struct Still {
    park: Option<Arc<dyn Park>>,
    pass_over: u32,
}

impl Still {
    pub(super) fn by(park: Option<Arc<dyn Park>>) -> Self {
        Self { park, pass_over: 0 }
    }

    /// Holds vCPUs for so many granules. Where that cannot be it is done without.
    pub(super) fn hold(&mut self, granules: usize) -> Hold {
        let began = Instant::now();
        Hold { parked: self.park(granules), began }
    }

    fn park(&mut self, granules: usize) -> Option<Box<dyn Parked>> {
        let park = self.park.as_ref().filter(|_| granules >= WORTH)?;
        if self.pass_over > 0 {
            self.pass_over -= 1;
            return None;
        }
        let parked = park.park(PATIENCE);
        if parked.is_none() {
            self.pass_over = PASSED_OVER;
        }
        parked
    }
}

/// Granules are taken or given back, and vCPUs perhaps held meanwhile.
pub(super) struct Hold {
    parked: Option<Box<dyn Parked>>,
    began: Instant,
}

impl Hold {
    /// Lets vCPUs go if they were held for long.
    pub(super) fn look(&mut self) {
        if self.began.elapsed() > LONGEST {
            self.parked = None;
        }
    }

    /// Lets them go. Says how long all took, and whether they were held.
    pub(super) fn end(self) -> (Duration, bool) {
        let held = self.parked.is_some();
        drop(self.parked);
        (self.began.elapsed(), held)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

    use super::*;

    /// Holds each second time only.
    #[derive(Debug, Default)]
    struct Often(AtomicU32);

    struct Held;

    impl Parked for Held {
        fn vcpus(&self) -> usize {
            1
        }
    }

    impl Park for Often {
        fn park(&self, _: Duration) -> Option<Box<dyn Parked>> {
            let first = self.0.fetch_add(1, Relaxed).is_multiple_of(2);
            first.then(|| Box::new(Held) as _)
        }
    }

    #[test]
    fn who_did_not_come_in_time_is_left_alone_for_a_while() {
        let often = Arc::new(Often::default());
        let mut still = Still::by(Some(Arc::clone(&often) as _));
        let mut held = |granules| still.hold(granules).end().1;
        assert!(!held(WORTH - 1));
        assert!(held(WORTH));
        assert!((0..=PASSED_OVER).all(|_| !held(100)));
        assert_eq!(often.0.load(Relaxed), 2);
        assert!(held(100));
        assert!(!Still::by(None).hold(100).end().1);
    }

    #[test]
    fn nobody_is_held_for_long() {
        let mut still = Still::by(Some(Arc::new(Often::default())));
        let mut hold = still.hold(100);
        hold.look();
        std::thread::sleep(2 * LONGEST);
        hold.look();
        let (took, held) = hold.end();
        assert!(took > LONGEST && !held);
    }
}
