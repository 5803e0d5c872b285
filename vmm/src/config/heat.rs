//! From `--heat-budget`, `--heat-period` and `--heat-cost` to a [`HeatConfig`]. Pure.

use std::time::Duration;

use neap_memory::Backing;
use neap_memory::policy::PolicyName;
use neap_memory::tiers::HeatConfig;

use super::ConfigError;
use super::units::{Percent, Size};

/// What the options say of policy `heat`.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct HeatRequest {
    /// Bytes a second.
    pub(super) budget: Option<Size>,
    /// Milliseconds.
    pub(super) period: Option<u32>,
    pub(super) cost: Option<Percent>,
    /// Whether what is seen is written to a file.
    pub(super) trace: bool,
}

/// Numbers of policy `heat`; those of another policy do not matter. `dax` is a
/// region's backing that is a device.
pub(super) fn resolve(
    request: HeatRequest,
    policy: PolicyName,
    dax: Option<Backing>,
    warnings: &mut Vec<String>,
) -> Result<HeatConfig, ConfigError> {
    let HeatRequest { budget, period, cost, trace } = request;
    if budget == Some(Size(0)) {
        let message = "0 lets nothing move: give bytes a second, such as 100M, or another --policy";
        return Err(ConfigError::new("--heat-budget", message));
    }
    let default = HeatConfig::default();
    let period = period.map_or(default.period, |ms| Duration::from_millis(ms.into()));
    if !HeatConfig::PERIODS.contains(&period) {
        let (from, to) = (HeatConfig::PERIODS.start(), HeatConfig::PERIODS.end());
        let (from, to) = (from.as_millis(), to.as_millis());
        let message = format!("{} ms is not {from} to {to}", period.as_millis());
        return Err(ConfigError::new("--heat-period", message));
    }
    let cost = cost.map_or(default.cost, |Percent(cost)| cost);
    if !HeatConfig::COSTS.contains(&cost) {
        let message = format!("{} is not 0.01 to 10 percent", f64::from(cost) / 100.0);
        return Err(ConfigError::new("--heat-cost", message));
    }
    if policy != PolicyName::Heat {
        let given = [
            ("--heat-budget", budget.is_some()),
            ("--heat-period", request.period.is_some()),
            ("--heat-cost", request.cost.is_some()),
            ("--heat-trace", trace),
        ];
        for (option, _) in given.into_iter().filter(|(_, given)| *given) {
            warnings.push(format!("{option} changes nothing without --policy heat"));
        }
    } else if let Some(dax) = dax {
        let message = format!(
            "heat does not see reads of backing={dax}, which nobody can watch: give \
             --device-memory another backing=, or --policy static or on-fault"
        );
        return Err(ConfigError::new("--policy", message));
    }
    let budget = budget.map_or(default.budget, |budget| budget.0);
    Ok(HeatConfig { budget, period, cost, ..default })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(request: HeatRequest, dax: Option<Backing>) -> String {
        resolve(request, PolicyName::Heat, dax, &mut Vec::new()).unwrap_err().to_string()
    }

    #[test]
    fn a_budget_of_nothing_and_periods_that_cannot_be_are_refused() {
        let nothing = HeatRequest { budget: Some(Size(0)), ..HeatRequest::default() };
        assert!(refused(nothing, None).starts_with("--heat-budget: 0 lets nothing move"));
        for ms in [0, 9, 10_001] {
            let message = refused(HeatRequest { period: Some(ms), ..HeatRequest::default() }, None);
            assert_eq!(message, format!("--heat-period: {ms} ms is not 10 to 10000"));
        }
        for cost in [0, 1001] {
            let cost = HeatRequest { cost: Some(Percent(cost)), ..HeatRequest::default() };
            let message = refused(cost, None);
            assert!(message.ends_with("is not 0.01 to 10 percent"), "{message}");
        }
        let dax = "dax:/dev/dax0.0".parse().unwrap();
        let message = refused(HeatRequest::default(), Some(dax));
        assert!(message.contains("backing=dax:/dev/dax0.0, which nobody"), "{message}");
    }

    #[test]
    fn numbers_of_another_policy_are_a_warning() {
        let mut warnings = Vec::new();
        let given = HeatRequest {
            budget: Some(Size(5)),
            period: Some(50),
            cost: Some(Percent(50)),
            trace: true,
        };
        let config = resolve(given, PolicyName::Heat, None, &mut warnings).unwrap();
        assert_eq!((config.budget, config.period, config.cost), (5, Duration::from_millis(50), 50));
        assert_eq!(warnings, [""; 0]);
        resolve(given, PolicyName::Static, None, &mut warnings).unwrap();
        assert_eq!(warnings.len(), 4);
    }
}
