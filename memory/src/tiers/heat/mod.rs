//! The heat thread: in each tick it asks the policy, moves what it says by ordinary
//! requests, watches granules for a part of the tick, and takes in what was seen
//! of them.
//!
//! It holds its turn ([`Turn`]) for one batch at a time, so that a person's
//! request waits for a batch at the most.

mod meter;
mod source;
mod still;
#[cfg(all(test, not(feature = "loom")))]
mod tests;
mod writes;

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

pub(crate) use self::meter::Echo;
use self::source::{Source, choose};
pub(super) use self::source::{TAKES_APART, takes_apart};
use super::core::{Core, lock};
use super::death::Death;
use super::movers::{Movers, Turn};
use super::{HeatConfig, TiersError};
use crate::granule::{Granule, Kind, PoolId};
use crate::heat::{HeatPolicy, Moves, Purse, Seen, Where};
use crate::migrate::{MigrateRequest, Select, Target};
use crate::table::{Place, View};

/// Bytes that are moved in one turn.
const BATCH: u64 = 16 << 20;

/// Shortest time for which granules are watched: this thread wakes up in between.
const SHORTEST: Duration = Duration::from_micros(200);

/// The thread with what ends it.
pub(crate) struct HeatThread {
    orders: Arc<Orders>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Orders {
    order: Mutex<Order>,
    changed: Condvar,
}

/// What the thread is to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Order {
    #[default]
    Run,
    /// Nothing, until told otherwise.
    Hold,
    End,
}

impl Orders {
    fn give(&self, order: Order) {
        *lock(&self.order) = order;
        self.changed.notify_all();
    }

    /// Waits for `time`, or until the order is another than `last`.
    fn wait(&self, last: Order, time: Duration) -> Order {
        let order = lock(&self.order);
        let waited = self.changed.wait_timeout_while(order, time, |order| *order == last);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl HeatThread {
    /// Starts it.
    ///
    /// # Errors
    /// Numbers that let nothing happen, no source of heat on this host, or no
    /// thread.
    pub(crate) fn start(movers: &Arc<Movers>, config: HeatConfig) -> Result<Self, TiersError> {
        let core = &movers.core;
        if !HeatConfig::PERIODS.contains(&config.period) {
            let (from, to) = (HeatConfig::PERIODS.start(), HeatConfig::PERIODS.end());
            let period = config.period;
            return Err(TiersError::Heat(format!(
                "a period of {period:?} is not {from:?} to {to:?}"
            )));
        }
        if !HeatConfig::COSTS.contains(&config.cost) {
            let cost = f64::from(config.cost) / 100.0;
            return Err(TiersError::Heat(format!("a cost of {cost} % is not 0.01 to 10")));
        }
        let settings = config.settings(core.space.size());
        let policy = HeatPolicy::new(core.space.granules(), settings)
            .map_err(|error| TiersError::Heat(error.to_string()))?;
        let source = choose(core, config.period).map_err(TiersError::Heat)?;
        let orders = Arc::<Orders>::default();
        let purse = Purse::new(config.cost_per_period());
        let service = Service { movers: Arc::clone(movers), policy, purse, source, config };
        let follows = Arc::clone(&orders);
        let work = move || {
            let _death = Death::of("the heat thread", service.movers.core.fatal);
            service.serve(&follows);
        };
        let thread = thread::Builder::new()
            .name("heat".into())
            .spawn(work)
            .map_err(|source| TiersError::Refused { what: "threads", source })?;
        Ok(Self { orders, thread: Some(thread) })
    }

    /// Has the thread watch and move nothing any more, or go on.
    pub(crate) fn hold(&self, hold: bool) {
        self.orders.give(if hold { Order::Hold } else { Order::Run });
    }
}

impl Drop for HeatThread {
    /// Ends the thread, after the batch that it is at.
    fn drop(&mut self) {
        self.orders.give(Order::End);
        if let Some(thread) = self.thread.take() {
            // A panic has ended the process.
            let _ = thread.join();
        }
    }
}

struct Service {
    movers: Arc<Movers>,
    policy: HeatPolicy,
    /// The guest's time that looks may still take.
    purse: Purse,
    source: Box<dyn Source>,
    config: HeatConfig,
}

impl Service {
    fn serve(mut self, orders: &Orders) {
        let period = self.config.period;
        let (mut last, mut rest) = (Order::Run, period);
        loop {
            last = orders.wait(last, rest);
            rest = period;
            match last {
                _ if self.movers.core.is_over() => break,
                Order::End => break,
                Order::Run => {
                    self.tick();
                    let span = self.policy.watch_for(period).clamp(SHORTEST, period);
                    last = orders.wait(last, span);
                    let seen = self.look();
                    match last {
                        Order::Run => {
                            self.record(&seen);
                            self.policy.observe(&seen);
                            rest = period - span;
                        }
                        // It was cut short, and says little.
                        Order::Hold => {}
                        Order::End => break,
                    }
                }
                // What a request was at work on.
                Order::Hold => drop(self.look()),
            }
        }
        // Nobody may be there to bring it back later.
        self.source.harvest(&self.movers.turn(), &mut Vec::new());
    }

    /// Ends the watch, and says what was seen.
    fn look(&mut self) -> Vec<Seen> {
        let mut seen = Vec::new();
        self.source.harvest(&self.movers.turn(), &mut seen);
        self.pay(&seen);
        seen
    }

    /// Moves what is to move, and watches others.
    fn tick(&mut self) {
        let core = Arc::clone(&self.movers.core);
        let moves = self.plan();
        if self.config.moves {
            self.carry_out(&moves);
        }
        let turn = self.movers.turn();
        let source = &mut self.source;
        let looks = self.purse.tick(source.price(), self.policy.settings().most());
        let chosen = self.policy.watch(looks, &mut |granule| {
            turn.may(granule) && !core.is_window(granule) && source.may(granule)
        });
        let watched = source.watch(&chosen);
        core.counters.heat.watched.fetch_add(watched, Relaxed);
    }

    /// Writes what was seen to the trace, if there is one.
    fn record(&self, seen: &[Seen]) {
        let core = &self.movers.core;
        let mut recorder = lock(&core.recorder);
        if let Some(trace) = &mut *recorder
            && trace.note(seen, &|granule| place(core, granule)).is_err()
        {
            core.counters.heat.trace_failed.store(true, Relaxed);
            *recorder = None;
        }
    }

    /// Counts what the looks of the last tick have cost the guest.
    fn pay(&mut self, seen: &[Seen]) {
        let price = self.source.price();
        let counters = &self.movers.core.counters.heat;
        let touched = seen.iter().filter(|seen| seen.touch.is_some()).count() as u32;
        let cost = |seen: &Seen| price.of(seen.touch.is_some(), self.policy.is_used(seen.granule));
        let cost = seen.iter().map(cost).sum();
        self.purse.spend(cost, seen.len() as u32);
        counters.touched.fetch_add(touched.into(), Relaxed);
        counters.cost.fetch_add(u64::try_from(cost.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }

    fn plan(&mut self) -> Moves {
        let core = &self.movers.core;
        let room = public(core).map(|(_, free)| free).sum();
        let reads = self.source.sees_reads();
        let place = |granule| match place(core, granule) {
            // It may be read all the time.
            Where::Fast if !reads => Where::Fixed,
            place => place,
        };
        self.policy.plan(&place, room)
    }

    fn carry_out(&mut self, Moves { demote, promote }: &Moves) {
        let core = Arc::clone(&self.movers.core);
        let (mut asked, mut moved) = (0, 0);
        let batch = (BATCH / core.space.size().bytes()).max(1) as usize;
        for granules in demote.chunks(batch) {
            asked += granules.len() as u64;
            let demoted = self.batch(granules, Target::Home);
            core.counters.heat.demoted.fetch_add(demoted, Relaxed);
            moved += demoted;
        }
        let mut promote = promote.as_slice();
        asked += promote.len() as u64;
        while let Some((pool, free)) = public(&core).find(|(_, free)| *free > 0)
            && !promote.is_empty()
        {
            let count = batch.min(free as usize).min(promote.len());
            let (now, later) = promote.split_at(count);
            let promoted = self.batch(now, Target::Pool(pool));
            core.counters.heat.promoted.fetch_add(promoted, Relaxed);
            moved += promoted;
            promote = later;
        }
        core.counters.heat.bytes.fetch_add(moved * core.space.size().bytes(), Relaxed);
        self.policy.failed(asked.saturating_sub(moved));
    }

    /// Moves granules in one turn; says how many went.
    fn batch(&self, granules: &[Granule], to: Target) -> u64 {
        let turn = self.movers.turn();
        let free = granules.iter().filter(|granule| turn.may(**granule));
        let ranges = free.filter_map(|granule| self.movers.core.space.gpa(*granule, 1)).collect();
        let request = MigrateRequest {
            ranges,
            to,
            select: Select {
                system: to != Target::Home,
                device_private: false,
                device_public: to == Target::Home,
                untouched: false,
            },
            from_pool: None,
            limit: None,
        };
        // No ranges would be all of memory.
        if request.ranges.is_empty() {
            return 0;
        }
        // An error: the machine is over.
        turn.migrate(&request).map_or(0, |report| report.moved.granules)
    }
}

/// Public pools with the frames that they have free.
fn public(core: &Core) -> impl Iterator<Item = (PoolId, u32)> + '_ {
    core.pools
        .iter()
        .map(lock)
        .filter(|pool| pool.kind() == Kind::Public)
        .map(|pool| (pool.id(), pool.free()))
}

fn place(core: &Core, granule: Granule) -> Where {
    match core.table.get(granule) {
        View { moving: true, .. } | View { pins: 1.., .. } => Where::Fixed,
        // A window is the guest's to fill.
        _ if core.is_window(granule) || core.damaged.contains(granule) => Where::Fixed,
        View { place: Place::Home, .. } => Where::Slow,
        View { place: Place::Device { pool, .. }, .. } if core.kind(pool) == Kind::Public => {
            Where::Fast
        }
        View { .. } => Where::Fixed,
    }
}
