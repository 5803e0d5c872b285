//! The benches of memory that moves, as the command line names them.

use neap_memory::addr::GIB;

use super::host::{Interrupts, window_size};
use super::rates::Task;
use super::{Variant, api, fault, guest_time, overhead, pool, rates, steady};
use crate::bench::BenchError;
use crate::bench::rows::{Row, Rows};
use crate::doctor::Host;

/// One bench.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// How fast, beside memcpy and the floor program, and what the guest has
    /// of it.
    Migrate,
    /// Touch to resume.
    Fault,
    /// Touches of what has moved.
    Steady,
    /// Regions and metadata.
    Pool,
    /// The API socket while memory moves.
    Api,
}

/// A window for what is compared with the floor program: both sides copy the
/// same, so it need not escape the caches.
const FLOOR_WINDOW: u64 = GIB;

type Measure = Box<dyn Fn(Task<'_>) -> Result<Vec<Row>, BenchError>>;

/// Figures that are measured together.
struct Part {
    names: Vec<String>,
    /// Whether the window has to be one that no cache holds.
    escapes: bool,
    measure: Measure,
}

impl Part {
    fn new(
        names: Vec<String>,
        escapes: bool,
        measure: impl Fn(Task<'_>) -> Result<Vec<Row>, BenchError> + 'static,
    ) -> Self {
        Self { names, escapes, measure: Box::new(measure) }
    }
}

fn parts(subject: Subject) -> Vec<Part> {
    match subject {
        Subject::Migrate => {
            let rates = Variant::NAMES.map(|(_, variant)| {
                let measure = move |task: Task<'_>| rates::measure(variant, task);
                Part::new(rates::names(variant), true, measure)
            });
            let overheads = [Variant::Thp2m, Variant::Hugetlb2m].map(|variant| {
                let measure = move |task: Task<'_>| overhead::measure(variant, task);
                Part::new(overhead::names(variant), false, measure)
            });
            let mut all = Vec::from(rates);
            all.extend(overheads);
            all.push(Part::new(vec![overhead::SCATTERED.into()], false, overhead::scattered));
            all.push(Part::new(guest_time::names(), false, guest_time::measure));
            all
        }
        Subject::Fault => [Variant::K4, Variant::Thp2m]
            .map(|variant| {
                let measure = move |task: Task<'_>| fault::measure(variant, task);
                Part::new(fault::names(variant), false, measure)
            })
            .into(),
        Subject::Steady => vec![Part::new(steady::names(), false, steady::measure)],
        Subject::Pool => vec![Part::new(pool::names(), false, pool::measure)],
        Subject::Api => vec![Part::new(api::names(), false, api::measure)],
    }
}

/// Measures `subject` in `turns` turns; with `only` no more than the figures
/// that have it in their names, and those that are measured together with
/// them. `tell` hears what comes next.
///
/// # Errors
/// A bench failed, no turns, or no such figure. What this machine cannot do is
/// no error: it is left out, with the reason.
pub fn measure(
    subject: Subject,
    turns: usize,
    only: Option<&str>,
    tell: &mut dyn FnMut(&str),
) -> Result<Rows, BenchError> {
    if turns == 0 {
        return Err(BenchError::NoRuns(turns));
    }
    let host = Host::this_machine();
    let interrupts = Interrupts::watch()?;
    let wanted =
        |part: &Part| only.is_none_or(|only| part.names.iter().any(|name| name.contains(only)));
    let parts: Vec<Part> = parts(subject).into_iter().filter(wanted).collect();
    if parts.is_empty() {
        let only = only.unwrap_or_default();
        return Err(BenchError::Unable(format!("--only {only}: no figure has that in its name")));
    }
    let mut rows = Rows::default();
    for part in parts {
        tell(&part.names.join(", "));
        let window = if part.escapes { window_size(&host) } else { Ok(FLOOR_WINDOW) };
        let measured = window.and_then(|window| {
            (part.measure)(Task { window, turns, host: &host, interrupts: &interrupts })
        });
        rows.take(&part.names, measured)?;
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_of_the_design_has_a_part() {
        let subjects =
            [Subject::Migrate, Subject::Fault, Subject::Steady, Subject::Pool, Subject::Api];
        let mut names: Vec<String> =
            subjects.into_iter().flat_map(parts).flat_map(|part| part.names).collect();
        names.sort();
        let mut expected: Vec<String> = Vec::new();
        for variant in ["2m_thp", "2m_hugetlb", "2m_4k", "64k", "4k"] {
            for load in ["idle", "busy"] {
                expected.push(format!("migrate.{load}_vs_memcpy.{variant}"));
            }
        }
        for variant in ["2m_thp", "2m_hugetlb"] {
            expected.push(format!("migrate.overhead_vs_floor.{variant}"));
            expected.push(format!("migrate.overhead_us_per_granule.{variant}"));
        }
        for size in ["4k", "2m"] {
            expected.push(format!("fault.median_vs_parts.{size}"));
            expected.push(format!("fault.p99_over_median.{size}"));
        }
        expected.extend(
            [
                "migrate.guest_passes_per_gb_vs_floor.2m_thp",
                "migrate.longest_stall_in_copies.2m_thp",
                "migrate.guest_lost_vs_copy.2m_thp",
                "migrate.scattered_4k_vs_floor",
                "steady.device_vs_home",
                "pool.bytes_per_granule",
                "pool.create_ms.1t",
                "pool.rss_mib.1t",
                "api.status_ms.1t",
                "api.residency_ms.1t",
                "api.scrape_ms",
                "api.moves_while_scraped",
            ]
            .map(str::to_owned),
        );
        expected.sort();
        assert_eq!(names, expected);
    }

    #[test]
    fn a_figure_that_there_is_not_and_no_turns_are_refused() {
        let none = &mut |_: &str| {};
        assert!(matches!(measure(Subject::Pool, 0, None, none), Err(BenchError::NoRuns(0))));
        let error = measure(Subject::Pool, 1, Some("tides"), none).unwrap_err();
        assert!(error.to_string().starts_with("--only tides"), "{error}");
    }
}
