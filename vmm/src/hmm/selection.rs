//! Which tests a run is to contain: the lists kept per kernel series, and the
//! harness's own filter arguments.

use std::collections::BTreeSet;

use crate::images::recipes::HMM_TEST_LISTS;

/// Kind of device memory that tests are run with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Variant {
    /// Device-coherent memory: processors address it.
    Coherent,
    /// Device-private memory: a processor's touch brings the page home.
    Private,
    /// Both.
    #[default]
    All,
}

impl Variant {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Coherent => "coherent",
            Self::Private => "private",
            Self::All => "all",
        }
    }
}

/// Every test of hmm-tests in the series that `release` belongs to (`6.12`
/// for `6.12.117`), or `None` if no list is kept for it.
pub(super) fn known_tests(release: &str) -> Option<BTreeSet<&'static str>> {
    let series = series(release)?;
    let (_, list) = HMM_TEST_LISTS.iter().find(|(kept, _)| *kept == series)?;
    Some(list.lines().filter(|line| !line.is_empty()).collect())
}

/// `6.12` for `6.12.117` and for `6.12-rc3`.
pub(super) fn series(release: &str) -> Option<String> {
    let mut parts = release.split(|mark: char| !mark.is_ascii_digit());
    let (major, minor) = (parts.next()?, parts.next()?);
    (!major.is_empty() && !minor.is_empty()).then(|| format!("{major}.{minor}"))
}

/// One filter argument, as the harness understands it: the first filter that
/// a test matches decides.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Filter {
    /// `f`, `v`, `t` or `r`; upper case excludes.
    kind: char,
    name: String,
}

/// The tests that a run is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Selection {
    filters: Vec<Filter>,
}

impl Selection {
    /// Tests of `variant` that `arguments`, in the harness's own syntax,
    /// select. The error is a line about the arguments.
    pub(super) fn new(variant: Variant, arguments: &[String]) -> Result<Self, String> {
        // Excluding the other kind, before anything else, makes what follows
        // select within this kind; including this kind would add to it.
        let excluded: &[&str] = match variant {
            Variant::Coherent => &["hmm_device_private", "hmm2_device_private"],
            Variant::Private => &["hmm_device_coherent", "hmm2_device_coherent"],
            Variant::All => &[],
        };
        let mut filters: Vec<Filter> =
            excluded.iter().map(|name| Filter { kind: 'V', name: (*name).to_owned() }).collect();
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let kind = argument.strip_prefix('-').and_then(|rest| rest.chars().next());
            let Some(kind) = kind.filter(|kind| "fFvVtTr".contains(*kind)) else {
                return Err(format!(
                    "TEST-ARGS: `{argument}` selects no tests; -t, -v, -f NAME include and -T, \
                     -V, -F NAME exclude a test, variant or fixture, -r NAME takes a full name"
                ));
            };
            let name = match &argument[2..] {
                "" => arguments.next().cloned(),
                attached => Some(attached.to_owned()),
            };
            let Some(name) = name else {
                return Err(format!("TEST-ARGS: `{argument}` takes a name after it"));
            };
            filters.push(Filter { kind, name });
        }
        Ok(Self { filters })
    }

    /// The arguments for hmm-tests.
    pub(super) fn arguments(&self) -> Vec<String> {
        self.filters
            .iter()
            .flat_map(|filter| [format!("-{}", filter.kind), filter.name.clone()])
            .collect()
    }

    /// Whether the harness runs the test called `full_name`.
    pub(super) fn contains(&self, full_name: &str) -> bool {
        let parts: Vec<&str> = full_name.split('.').collect();
        let (fixture, variant, test) = match parts[..] {
            [fixture, test] => (fixture, "", test),
            [fixture, variant, test] => (fixture, variant, test),
            _ => return false,
        };
        let mut includes = false;
        for Filter { kind, name } in &self.filters {
            includes |= kind.is_ascii_lowercase();
            let part = match kind.to_ascii_lowercase() {
                'f' => fixture,
                'v' => variant,
                't' => test,
                _ => full_name,
            };
            if name == part {
                return kind.is_ascii_lowercase();
            }
        }
        !includes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selected(variant: Variant, arguments: &[&str]) -> Vec<&'static str> {
        let arguments: Vec<String> = arguments.iter().map(|word| (*word).to_owned()).collect();
        let selection = Selection::new(variant, &arguments).unwrap();
        let tests = known_tests("6.12.117").unwrap();
        tests.into_iter().filter(|name| selection.contains(name)).collect()
    }

    #[test]
    fn the_list_of_6_12_has_58_tests_of_four_variants() {
        let tests = known_tests("6.12.117").unwrap();
        assert_eq!(tests.len(), 58);
        let variants: BTreeSet<_> =
            tests.iter().filter_map(|name| name.split('.').nth(1)).collect();
        assert_eq!(variants.len(), 4);
        assert!(known_tests("6.13.1").is_none());
        assert!(known_tests("6.1.12").is_none());
        assert!(known_tests("garbage").is_none());
    }

    #[test]
    fn each_kind_of_memory_has_half_of_the_tests() {
        let coherent = selected(Variant::Coherent, &[]);
        let private = selected(Variant::Private, &[]);
        assert_eq!((coherent.len(), private.len()), (29, 29));
        assert!(coherent.iter().all(|name| name.contains("coherent")));
        assert_eq!(selected(Variant::All, &[]).len(), 58);
    }

    #[test]
    fn arguments_select_within_the_variant() {
        assert_eq!(
            selected(Variant::Coherent, &["-t", "migrate", "-tsnapshot"]),
            ["hmm.hmm_device_coherent.migrate", "hmm2.hmm2_device_coherent.snapshot"]
        );
        assert_eq!(selected(Variant::All, &["-f", "hmm2"]).len(), 6);
        assert_eq!(selected(Variant::All, &["-F", "hmm2"]).len(), 52);
    }

    #[test]
    fn the_first_matching_filter_decides() {
        let tests = selected(Variant::All, &["-T", "migrate", "-v", "hmm_device_private"]);
        assert_eq!(tests.len(), 25);
        assert!(!tests.contains(&"hmm.hmm_device_private.migrate"));
        let full = "hmm.hmm_device_private.migrate";
        assert_eq!(selected(Variant::All, &["-r", full]), [full]);
    }

    #[test]
    fn arguments_that_run_nothing_are_refused() {
        for bad in [&["-l"][..], &["-h"], &["migrate"], &["-t"], &["--"], &["-"]] {
            let arguments: Vec<String> = bad.iter().map(|word| (*word).to_owned()).collect();
            assert!(Selection::new(Variant::All, &arguments).is_err(), "{bad:?}");
        }
    }
}
