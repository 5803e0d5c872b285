//! What moves.

use std::time::Duration;

use super::bucket::Bucket;
use super::entry::{Entry, Tick};
use super::purse::Looks;
use super::scale::Scale;
use super::settings::{Settings, SettingsError};
use super::span::Span;
use super::unrest::Unrest;
use super::watch::Round;
use crate::granule::Granule;

/// How a watched granule was touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touch {
    /// About how often in a tick, at least 1: a source that sees the first
    /// touch only says a tick by the time until then.
    pub count: u32,
    /// Whether it was a write.
    pub write: bool,
}

/// What was seen of a granule that was watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Which.
    pub granule: Granule,
    /// Whether and how it was touched.
    pub touch: Option<Touch>,
}

/// Where a granule is, to a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Where {
    /// In the slow tier, and may leave it.
    Slow,
    /// In the fast tier, and may leave it.
    Fast,
    /// It stays where it is: pinned, moving, never touched, or not this
    /// policy's.
    Fixed,
}

/// What is to move.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moves {
    /// To the slow tier, before the others.
    pub demote: Vec<Granule>,
    /// To the fast tier.
    pub promote: Vec<Granule>,
}

impl Moves {
    /// Granules that move.
    pub fn len(&self) -> usize {
        self.demote.len() + self.promote.len()
    }

    /// Whether none does.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The policy with what it knows: 8 bytes a granule.
#[derive(Clone, Debug)]
pub struct HeatPolicy {
    settings: Settings,
    entries: Vec<Entry>,
    bucket: Bucket,
    round: Round,
    tick: u64,
    /// Where the next slice begins.
    slice: u32,
    scale: Scale,
    unrest: Unrest,
    span: Span,
}

/// A granule with its heat.
type Ranked = (u16, u32);

impl HeatPolicy {
    /// Bytes that are remembered of a granule.
    pub const BYTES_PER_GRANULE: usize = size_of::<Entry>();

    /// A policy for `granules` granules of which nothing is known.
    ///
    /// # Errors
    /// Settings that make no sense; a budget of 0 among them.
    pub fn new(granules: u32, settings: Settings) -> Result<Self, SettingsError> {
        settings.check()?;
        let pair = 2 * settings.granule.bytes();
        // A swap must fit, however small the budget; and what was not used for
        // a while may not come all at once.
        let most = settings.budget.saturating_mul(2).max(pair);
        Ok(Self {
            settings,
            entries: vec![Entry::default(); granules as usize],
            bucket: Bucket::new(settings.budget, most),
            round: Round::new(granules),
            tick: 0,
            slice: 0,
            scale: Scale::default(),
            unrest: Unrest::default(),
            span: Span::default(),
        })
    }

    /// Its settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Average of log2(1 + touches a tick) of a granule, in 256ths.
    pub fn heat(&self, granule: Granule) -> u16 {
        self.entries.get(granule.0 as usize).map_or(0, |entry| entry.heat())
    }

    /// Whether a granule was touched when it was last watched.
    pub fn is_used(&self, granule: Granule) -> bool {
        self.entries.get(granule.0 as usize).is_some_and(|entry| entry.is_used())
    }

    fn now(&self) -> Tick {
        Tick::new(self.tick)
    }

    /// Takes in what was seen. A granule that does not exist is passed over.
    pub fn observe(&mut self, seen: &[Seen]) {
        let now = self.now();
        for Seen { granule, touch } in seen {
            let Some(entry) = self.entries.get_mut(granule.0 as usize) else { continue };
            let count = touch.map_or(0, |touch| touch.count.max(1));
            let look = entry.observe(now, count, self.scale.hot());
            if look.again {
                self.round.again(granule.0);
            }
            self.unrest.observe(look.surprise);
            self.span.observe(count > 0);
        }
    }

    /// How long granules are to be watched in a tick that is so long.
    pub fn watch_for(&self, tick: Duration) -> Duration {
        self.span.of(tick)
    }

    /// A tick passes: what is to move now. `place` says where each granule is,
    /// `room` how many granules the fast tier has room for beside those in it.
    /// What is in the plan counts as moved; see [`Self::failed`].
    pub fn plan(&mut self, place: &dyn Fn(Granule) -> Where, room: u32) -> Moves {
        self.tick += 1;
        self.bucket.refill();
        self.unrest.tick();
        let size = self.settings.granule.bytes();
        let most = usize::try_from(self.bucket.left() / size).unwrap_or(usize::MAX);
        let (mut hot, mut cold) = self.slice(place, room);
        keep(&mut hot, most, |a, b| b.cmp(a));
        keep(&mut cold, most, |a, b| a.cmp(b));
        let mut moves = Moves::default();
        let (mut room, mut cold) = (room, cold.into_iter());
        for (heat, granule) in hot {
            if room > 0 {
                if !self.bucket.take(size) {
                    break;
                }
                room -= 1;
            } else {
                let Some((coldest, victim)) = cold.next() else { break };
                if !self.beats((heat, granule), (coldest, victim)) || !self.bucket.take(2 * size) {
                    break;
                }
                moves.demote.push(Granule(victim));
            }
            moves.promote.push(Granule(granule));
        }
        let now = self.now();
        for granule in moves.demote.iter().chain(&moves.promote) {
            if let Some(entry) = self.entries.get_mut(granule.0 as usize) {
                entry.rest(now, self.settings.rest);
            }
        }
        moves
    }

    /// Those of the next slice that could be promoted, and those that could be
    /// demoted.
    fn slice(&mut self, place: &dyn Fn(Granule) -> Where, room: u32) -> (Vec<Ranked>, Vec<Ranked>) {
        let (mut hot, mut cold) = (Vec::new(), Vec::new());
        let now = self.now();
        let count = self.entries.len() as u32;
        for _ in 0..self.settings.looks.min(count) {
            let index = self.slice;
            let Some(entry) = self.entries.get_mut(index as usize) else { break };
            entry.tidy(now);
            let place = place(Granule(index));
            if place != Where::Fixed {
                let known = (entry.known() > 0).then_some(entry.heat());
                self.scale.add(known, place == Where::Fast);
            }
            self.slice = (index + 1) % count;
            if self.slice == 0 {
                self.scale.finish(room);
            }
            if !entry.is_rested(now) {
                continue;
            }
            let is_hot = entry.is_used()
                && entry.seen() >= self.settings.seen
                && entry.heat() >= self.scale.hot();
            match place {
                Where::Slow if is_hot => hot.push((entry.heat(), index)),
                Where::Fast if entry.known() > 0 => cold.push((entry.heat(), index)),
                Where::Slow | Where::Fast | Where::Fixed => {}
            }
        }
        (hot, cold)
    }

    /// Whether a granule is so much hotter than another that it should have
    /// its place.
    fn beats(&self, (heat, granule): Ranked, (coldest, victim): Ranked) -> bool {
        let known = |granule: u32| self.entries.get(granule as usize).map_or(0, |e| e.known());
        let known = u32::from(known(granule).min(known(victim)).max(1));
        let margin = self.unrest.narrowed(self.settings.margin);
        u32::from(heat) > u32::from(coldest) + margin + margin * 2 / known
    }

    /// These of the last plan did not move: their bytes may be used again.
    pub fn failed(&mut self, granules: u64) {
        self.bucket.give_back(granules.saturating_mul(self.settings.granule.bytes()));
    }

    /// What to watch from now to the next tick, as many as `looks` has or as
    /// the settings have. `may` says whether a granule can be watched.
    pub fn watch(&mut self, looks: Looks, may: &mut dyn FnMut(Granule) -> bool) -> Vec<Granule> {
        let most = self.settings.most();
        let watched = looks.watched.min(most.watched);
        let touched = looks.touched.min(most.touched);
        let now = self.now();
        let mut may = |granule| may(Granule(granule));
        let chosen = self.round.next(&self.entries, now, watched, touched, &mut may);
        chosen.into_iter().map(Granule).collect()
    }
}

/// The first `most` of `list` in order.
fn keep(list: &mut Vec<Ranked>, most: usize, by: impl Fn(&Ranked, &Ranked) -> std::cmp::Ordering) {
    if most == 0 {
        list.clear();
    } else if list.len() > most {
        list.select_nth_unstable_by(most - 1, &by);
        list.truncate(most);
    }
    list.sort_unstable_by(by);
}
