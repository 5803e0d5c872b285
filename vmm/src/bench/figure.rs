//! Samples and figures: the numbers of a bench and their JSON form.

use serde::Serialize;

/// Values of one quantity, measured again and again. Never empty.
#[derive(Clone, Debug, PartialEq)]
pub struct Samples {
    in_order: Vec<f64>,
    sorted: Vec<f64>,
}

impl Samples {
    /// The samples in the order in which they were taken; `None` if there are
    /// none, or if one is not a number.
    pub fn new(values: Vec<f64>) -> Option<Self> {
        if values.is_empty() || values.iter().any(|value| value.is_nan()) {
            return None;
        }
        let mut sorted = values.clone();
        sorted.sort_by(f64::total_cmp);
        Some(Self { in_order: values, sorted })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.sorted.len()
    }

    /// In the order in which they were taken.
    pub fn in_order(&self) -> &[f64] {
        &self.in_order
    }

    /// The smallest.
    pub fn min(&self) -> f64 {
        self.sorted[0]
    }

    /// The largest.
    pub fn max(&self) -> f64 {
        self.sorted[self.sorted.len() - 1]
    }

    /// The value below which the share `part` (0 to 1) of the samples lies.
    pub fn quantile(&self, part: f64) -> f64 {
        let index = (part.clamp(0.0, 1.0) * self.sorted.len() as f64) as usize;
        self.sorted[index.min(self.sorted.len() - 1)]
    }

    /// The middle one; of an even number the mean of the two in the middle.
    pub fn median(&self) -> f64 {
        let middle = self.sorted.len() / 2;
        if self.sorted.len().is_multiple_of(2) {
            (self.sorted[middle - 1] + self.sorted[middle]) / 2.0
        } else {
            self.sorted[middle]
        }
    }

    /// Applies `f` to pairs of samples that were taken in the same turn; what
    /// the longer side has more is left out. `None` if a result is not a
    /// number.
    pub fn pair(&self, other: &Self, f: impl Fn(f64, f64) -> f64) -> Option<Self> {
        let pairs = self.in_order.iter().zip(&other.in_order);
        Self::new(pairs.map(|(ours, theirs)| f(*ours, *theirs)).collect())
    }
}

/// On which side of its target a value is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Bound {
    /// Not above it.
    #[serde(rename = "at most")]
    AtMost,
    /// Not below it.
    #[serde(rename = "at least")]
    AtLeast,
}

impl Bound {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::AtMost => "at most",
            Self::AtLeast => "at least",
        }
    }
}

/// One named number that tools can follow over time.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// Stable name, `subject.quantity`.
    pub name: String,
    /// The value.
    pub value: f64,
    /// Unit of value, minimum, maximum and target.
    pub unit: String,
    /// Number of samples behind the value.
    pub samples: usize,
    /// Smallest value of a single sample or turn.
    pub min: f64,
    /// Largest value of a single sample or turn.
    pub max: f64,
    /// What the value must not exceed, or must reach, where there is such a
    /// target.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<f64>,
    /// Which of the two.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bound: Option<Bound>,
    /// Whether the value is within the target.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reached: Option<bool>,
}

impl Figure {
    /// The median of samples.
    pub fn median(name: &str, unit: &str, samples: &Samples) -> Self {
        Self {
            name: name.to_owned(),
            value: samples.median(),
            unit: unit.to_owned(),
            samples: samples.count(),
            min: samples.min(),
            max: samples.max(),
            target: None,
            bound: None,
            reached: None,
        }
    }

    /// The ratio of two medians. Its minimum and maximum are those of the
    /// ratios turn by turn, which disturbances of the machine hit on both
    /// sides. `None` if the other side has a zero.
    pub fn ratio(name: &str, ours: &Samples, theirs: &Samples) -> Option<Self> {
        Self::compare(name, "ratio", ours, theirs, |ours, theirs| ours / theirs)
    }

    /// The difference of two medians, with minimum and maximum of the
    /// differences turn by turn.
    pub fn difference(name: &str, unit: &str, ours: &Samples, theirs: &Samples) -> Option<Self> {
        Self::compare(name, unit, ours, theirs, |ours, theirs| ours - theirs)
    }

    fn compare(
        name: &str,
        unit: &str,
        ours: &Samples,
        theirs: &Samples,
        f: impl Fn(f64, f64) -> f64,
    ) -> Option<Self> {
        let turns = ours.pair(theirs, &f)?;
        let value = f(ours.median(), theirs.median());
        if !value.is_finite() || !turns.max().is_finite() {
            return None;
        }
        Some(Self { value, ..Self::median(name, unit, &turns) })
    }

    /// The figure with a target that the value must not exceed.
    pub fn at_most(mut self, target: f64) -> Self {
        self.target = Some(target);
        self.bound = Some(Bound::AtMost);
        self.reached = Some(self.value <= target);
        self
    }

    /// The figure with a target that the value must reach.
    pub fn at_least(mut self, target: f64) -> Self {
        self.target = Some(target);
        self.bound = Some(Bound::AtLeast);
        self.reached = Some(self.value >= target);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(values: &[f64]) -> Samples {
        Samples::new(values.to_vec()).unwrap()
    }

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        assert_eq!(samples(&[9.0, 1.0, 2.0]).median(), 2.0);
        assert_eq!(samples(&[9.0, 1.0, 2.0, 4.0]).median(), 3.0);
        assert_eq!(samples(&[7.0]).median(), 7.0);
    }

    #[test]
    fn a_quantile_has_its_share_below_it() {
        let hundred = samples(&(0..100).map(f64::from).collect::<Vec<_>>());
        assert_eq!(hundred.quantile(0.99), 99.0);
        assert_eq!(hundred.quantile(0.5), 50.0);
        assert_eq!(samples(&[7.0]).quantile(1.0), 7.0);
    }

    #[test]
    fn nothing_and_not_a_number_are_no_samples() {
        assert!(Samples::new(vec![]).is_none());
        assert!(Samples::new(vec![1.0, f64::NAN]).is_none());
    }

    #[test]
    fn order_of_taking_survives_sorting() {
        let taken = samples(&[3.0, 1.0, 2.0]);
        assert_eq!(taken.in_order(), [3.0, 1.0, 2.0]);
        assert_eq!((taken.min(), taken.max()), (1.0, 3.0));
    }

    #[test]
    fn a_ratio_is_of_medians_and_its_range_of_turns() {
        // Both sides were disturbed in the last turn.
        let figure =
            Figure::ratio("a.b", &samples(&[2.0, 3.0, 30.0]), &samples(&[2.0, 2.0, 20.0])).unwrap();
        assert_eq!(figure.value, 1.5);
        assert_eq!((figure.min, figure.max), (1.0, 1.5));
        assert_eq!(figure.samples, 3);
    }

    #[test]
    fn a_ratio_to_zero_is_no_figure() {
        assert!(Figure::ratio("a.b", &samples(&[1.0]), &samples(&[0.0])).is_none());
        assert!(Figure::ratio("a.b", &samples(&[0.0]), &samples(&[0.0])).is_none());
    }

    #[test]
    fn targets_are_limits_and_stand_in_the_json() {
        let figure = Figure::median("a.b", "MiB", &samples(&[5.0])).at_most(5.0);
        assert_eq!(figure.reached, Some(true));
        let json = serde_json::to_value(&figure).unwrap();
        assert_eq!(json["target"], 5.0);
        assert_eq!(json["bound"], "at most");
        let short = Figure::median("a.b", "MiB", &samples(&[5.0])).at_least(5.1);
        assert_eq!(short.reached, Some(false));
        let json = serde_json::to_value(Figure::median("a.b", "MiB", &samples(&[5.0]))).unwrap();
        let mut keys: Vec<_> = json.as_object().unwrap().keys().collect();
        keys.sort();
        assert_eq!(keys, ["max", "min", "name", "samples", "unit", "value"]);
    }
}
