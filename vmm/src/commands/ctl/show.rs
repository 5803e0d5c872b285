//! Answers of a machine, for people.

use std::collections::BTreeMap;
use std::fmt::Write;

use neap_memory::addr::display_size;

use super::accounts;
use crate::control::api::{
    Hex, Lifecycle, Migrated, Pinned, Place, Region, Residency, Run, Status, Tiers, Unpinned,
};

/// Most runs of what did not move that are listed.
const MAX_SKIPPED: usize = 20;

pub(super) fn lifecycle(answer: &Lifecycle) -> String {
    format!("{}\n", answer.state)
}

pub(super) fn pinned(answer: &Pinned) -> String {
    format!("{}\n", answer.pin)
}

pub(super) fn unpinned(_: &Unpinned) -> String {
    String::new()
}

pub(super) fn status(status: &Status) -> String {
    let mut rows = vec![
        row(["state", &status.state.to_string()]),
        row(["process", &format!("{} (neap {})", status.pid, status.version)]),
        row(["vCPUs", &status.vcpus.to_string()]),
        row(["memory", &display_size(status.memory_bytes)]),
    ];
    let Some(tiers) = &status.tiers else {
        rows.push(row(["moves", "none: no memory of this machine moves"]));
        return columns(&rows);
    };
    rows.extend(tiers_rows(tiers));
    let mut text = columns(&rows);
    if !tiers.regions.is_empty() {
        text.push('\n');
        text.push_str(&regions(&tiers.regions, tiers.granule_bytes));
    }
    if let Some(accounts) = &tiers.accounts {
        text.push('\n');
        text.push_str(&accounts::accounts(accounts));
    }
    text
}

fn tiers_rows(tiers: &Tiers) -> Vec<Vec<String>> {
    let moves = &tiers.moves;
    let counts = |counts: &BTreeMap<String, u64>| {
        let some: Vec<_> = counts
            .iter()
            .filter(|(_, count)| **count > 0)
            .map(|(name, count)| format!("{count} {name}"))
            .collect();
        if some.is_empty() { "none".to_owned() } else { some.join(", ") }
    };
    let mut rows = vec![
        row(["granule", &display_size(tiers.granule_bytes)]),
        row(["engine", &format!("{} on backing={}", tiers.engine, tiers.ram_backing)]),
        row(["policy", &tiers.policy]),
        row([
            "moves",
            &format!(
                "{} to devices, {} home, {} between devices; {}",
                moves.to_device,
                moves.to_home,
                moves.between,
                display_size(moves.bytes)
            ),
        ]),
        row(["outcomes", &counts(&tiers.outcomes)]),
        row(["faults", &format!("{} (by {})", counts(&tiers.faults), tiers.userfaultfd)]),
        row(["failures", &format!("{} of host memory", tiers.memory_failures)]),
        row(["mappings", &format!("{} of {}", tiers.vmas, tiers.vma_budget)]),
    ];
    if let Some(stalls) = &tiers.stalls {
        let text = format!(
            "{} of {} us, of which copying {} us; longest {} us; {} given up",
            stalls.batches, stalls.total_us, stalls.copying_us, stalls.longest_us, stalls.given_up
        );
        rows.push(row(["stalls", &text]));
    }
    if let Some(heat) = &tiers.heat {
        let text = format!(
            "{} watched, {} touched; {} promoted, {} demoted; {}; cost the guest {} us{}",
            heat.watched,
            heat.touched,
            heat.promoted,
            heat.demoted,
            display_size(heat.bytes),
            heat.cost_us,
            if heat.trace_failed { "; its trace could not be written to the end" } else { "" }
        );
        rows.push(row(["heat", &text]));
    }
    rows
}

fn regions(regions: &[Region], granule: u64) -> String {
    let size = |frames: u64| display_size(frames.saturating_mul(granule));
    let mut rows =
        vec![row(["region", "kind", "backing", "frames", "free", "used", "retired", "window"])];
    rows.extend(regions.iter().map(|region| {
        row([
            &region.region.to_string(),
            &region.kind,
            &region.backing,
            &format!("{} ({})", region.frames, size(region.frames)),
            &size(region.free),
            &size(region.used),
            &size(region.retired),
            &region.window.map_or_else(|| "-".to_owned(), |w| range(w.base, w.size)),
        ])
    }));
    columns(&rows)
}

pub(super) fn residency(residency: &Residency) -> String {
    let mut rows = vec![row(["memory", "size", "place", "kind", "refs", "pins", "state"])];
    let mut totals: BTreeMap<String, u64> = BTreeMap::new();
    for run in &residency.runs {
        let place = match (run.place, run.region) {
            (Place::Device, Some(region)) => format!("region {region}"),
            (Place::Device, None) => "device".to_owned(),
            (Place::Home, _) => "home".to_owned(),
        };
        *totals.entry(place.clone()).or_default() += run.size;
        let frame = run.frame.map(|frame| format!(", frame {frame}")).unwrap_or_default();
        rows.push(row([
            &range(run.base, run.size),
            &display_size(run.size),
            &format!("{place}{frame}"),
            run.kind.as_deref().unwrap_or("-"),
            &run.refcount.to_string(),
            &run.pins.to_string(),
            &run_state(run),
        ]));
    }
    let mut text = columns(&rows);
    let totals: Vec<_> =
        totals.iter().map(|(place, size)| format!("{place} {}", display_size(*size))).collect();
    let _ = writeln!(text, "\n{}", totals.join(", "));
    if let Some(verified) = &residency.verified {
        let _ = writeln!(
            text,
            "kernel: {} granules asked about, {} in huge pages, {} elsewhere; \
             {} not asked about (never moved, or moving)",
            verified.checked,
            display_size(verified.huge_bytes),
            verified.mismatches.len(),
            verified.passed_over
        );
        for mismatch in &verified.mismatches {
            let at = range(mismatch.base, mismatch.size);
            let _ = writeln!(text, "  {at}  {}", mismatch.found);
        }
    }
    text
}

fn run_state(run: &Run) -> String {
    let states =
        [(run.moving, "moving"), (run.untouched, "never moved"), (!run.mapped, "a touch faults")];
    let states: Vec<_> =
        states.into_iter().filter(|(holds, _)| *holds).map(|(_, state)| state).collect();
    states.join(", ")
}

pub(super) fn migrated(migrated: &Migrated) -> String {
    let moved = migrated.moved;
    let mut text = format!("moved {}", granules(moved.granules));
    if moved.granules > 0 {
        let size = display_size(moved.bytes);
        let _ = write!(text, ", {size} in {}", duration(migrated.elapsed_us));
    }
    text.push('\n');
    for (outcome, count) in &migrated.outcomes {
        if outcome != "moved" {
            let _ = writeln!(text, "{outcome} {}", granules(*count));
        }
    }
    let shown = migrated.skipped.iter().take(MAX_SKIPPED);
    let rows: Vec<_> =
        shown.map(|run| row(["", &range(run.base, run.size), &run.outcome])).collect();
    text.push_str(&columns(&rows));
    let more = migrated.skipped.len().saturating_sub(MAX_SKIPPED) as u64 + migrated.skipped_more;
    if more > 0 {
        let _ = writeln!(text, "  and {more} more");
    }
    text
}

/// Why nothing moved, if something should have. In a `filtered` request what
/// is of the wrong kind is what was left out on purpose.
pub(super) fn failed_whole(migrated: &Migrated, filtered: bool) -> Option<String> {
    if migrated.moved.granules > 0 {
        return None;
    }
    let is_failure = |name: &str| match name {
        "moved" | "already-there" | "untouched" => false,
        "wrong-kind" => !filtered,
        _ => true,
    };
    let why: Vec<_> = migrated
        .outcomes
        .iter()
        .filter(|(name, count)| is_failure(name) && **count > 0)
        .map(|(name, count)| format!("{} {name}", granules(*count)))
        .collect();
    (!why.is_empty()).then(|| why.join(", "))
}

/// Microseconds, in the unit that fits.
fn duration(us: u64) -> String {
    match us {
        0..1000 => format!("{us} us"),
        1000..1_000_000 => format!("{}.{} ms", us / 1000, us % 1000 / 100),
        _ => format!("{}.{:02} s", us / 1_000_000, us % 1_000_000 / 10_000),
    }
}

pub(super) fn granules(count: u64) -> String {
    format!("{count} granule{}", if count == 1 { "" } else { "s" })
}

/// First to last byte.
fn range(base: Hex, size: u64) -> String {
    format!("{base}-{}", Hex(base.0.saturating_add(size.saturating_sub(1))))
}

pub(super) fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

/// Rows with their cells one below the other.
pub(super) fn columns(rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = Vec::new();
    for row in rows {
        widths.resize(widths.len().max(row.len()), 0);
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::{Amount, Skipped};

    #[test]
    fn columns_line_up_and_end_without_spaces() {
        let text = columns(&[row(["a", "bb", "c"]), row(["ccc", "d", ""])]);
        assert_eq!(text, "a    bb  c\nccc  d\n");
    }

    #[test]
    fn a_migration_fails_whole_only_if_nothing_moved_and_something_should_have() {
        let of = |moved: u64, outcomes: &[(&str, u64)], filtered| {
            let outcomes = outcomes.iter().map(|(name, count)| ((*name).to_owned(), *count));
            let moved = Amount { granules: moved, bytes: moved << 21 };
            let (outcomes, whole) = (outcomes.collect(), Migrated::default());
            failed_whole(&Migrated { moved, outcomes, ..whole }, filtered)
        };
        assert_eq!(of(1, &[("moved", 1), ("pinned", 3)], false), None);
        assert_eq!(of(0, &[("already-there", 1), ("untouched", 5)], false), None);
        assert_eq!(of(0, &[], false), None);
        assert_eq!(of(0, &[("wrong-kind", 9)], true), None);
        assert_eq!(of(0, &[("wrong-kind", 9)], false).unwrap(), "9 granules wrong-kind");
        let why = of(0, &[("already-there", 4), ("no-frame", 1), ("pinned", 3)], true);
        assert_eq!(why.unwrap(), "1 granule no-frame, 3 granules pinned");
    }

    #[test]
    fn durations_have_the_unit_that_fits() {
        for (us, text) in [(999, "999 us"), (1_068_841, "1.06 s"), (1950, "1.9 ms"), (0, "0 us")] {
            assert_eq!(duration(us), text);
        }
    }

    #[test]
    fn what_did_not_move_is_listed_and_bounded() {
        let skipped = (0..30u64).map(|index| Skipped {
            base: Hex(index << 22),
            size: 2 << 20,
            outcome: "pinned".to_owned(),
        });
        let text = migrated(&Migrated {
            outcomes: [("pinned".to_owned(), 30)].into(),
            skipped: skipped.collect(),
            skipped_more: 5,
            ..Migrated::default()
        });
        assert!(text.starts_with("moved 0 granules\npinned 30 granules\n"), "{text}");
        assert!(text.contains("  0x400000-0x5fffff    pinned\n"), "{text}");
        assert!(text.ends_with("  and 15 more\n"), "{text}");
    }

    #[test]
    fn residency_has_a_line_for_each_run_and_the_sums() {
        let run = |base, place, region| Run {
            base: Hex(base),
            size: 2 << 20,
            place,
            region,
            frame: region.map(|_| 7),
            kind: region.map(|_| "public".to_owned()),
            untouched: false,
            mapped: true,
            refcount: 1,
            pins: 0,
            moving: false,
        };
        let text = residency(&Residency {
            runs: vec![run(0, Place::Home, None), run(2 << 20, Place::Device, Some(1))],
            next: None,
            verified: None,
        });
        assert!(text.contains("0x0-0x1fffff       2M    home"), "{text}");
        assert!(text.contains("0x200000-0x3fffff  2M    region 1, frame 7  public"), "{text}");
        assert!(text.ends_with("\nhome 2M, region 1 2M\n"), "{text}");
    }
}
