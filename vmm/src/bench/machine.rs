//! The machine that a figure was measured on.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::doctor::{GuestMode, Host, guest_mode};

/// What a reader needs to compare figures.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Machine {
    /// Processor model as the kernel names it.
    pub cpu: String,
    /// Processors that are online.
    pub cores: usize,
    /// RAM in MiB.
    pub memory_mib: u64,
    /// Kernel release.
    pub kernel: String,
    /// `native`, `interpreted at N MIPS` or `none`: guest kernel mode.
    pub kvm: String,
    /// When, in UTC: `2030-01-31T23:59:59Z`.
    pub date: String,
}

impl Machine {
    /// This machine, now. Measures KVM, which takes some 20 ms.
    pub fn this() -> Self {
        let kvm = match guest_mode() {
            GuestMode::Native => "native".to_owned(),
            GuestMode::Interpreted { mips } => format!("interpreted at {mips}"),
            GuestMode::NoKvm(_) => "none".to_owned(),
        };
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        Self { kvm, date: utc(seconds), ..Self::of(&Host::this_machine()) }
    }

    fn of(host: &Host) -> Self {
        let cpu = host.text("proc/cpuinfo").and_then(|text| value_of(&text, "model name"));
        let memory = host.text("proc/meminfo").and_then(|text| value_of(&text, "MemTotal"));
        let kib = memory.and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
        Self {
            cpu: cpu.unwrap_or_else(|| "unknown".to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_mib: kib.unwrap_or(0) / 1024,
            kernel: host.text("proc/sys/kernel/osrelease").unwrap_or_default(),
            kvm: String::new(),
            date: String::new(),
        }
    }

    /// One line for people.
    pub fn line(&self) -> String {
        format!(
            "{}, {} cores, {} MiB, Linux {}, guest kernel mode {}, {}",
            self.cpu, self.cores, self.memory_mib, self.kernel, self.kvm, self.date
        )
    }
}

/// The first value of `key` in lines of `key : value`.
fn value_of(text: &str, key: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == key).then(|| value.trim().to_owned())
    })
}

/// Seconds since 1970 as a date of the Gregorian calendar, in UTC.
fn utc(seconds: u64) -> String {
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let mut days = seconds / 86_400;
    let mut year = 1970;
    while days >= days_in_year(year) {
        days -= days_in_year(year);
        year += 1;
    }
    let february = days_in_year(year) - 337;
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    format!("{year}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z", days + 1)
}

fn days_in_year(year: u64) -> u64 {
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    if leap { 366 } else { 365 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_follow_the_calendar() {
        // Checked with `date -u -d @N`.
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(utc(1_709_251_199), "2024-02-29T23:59:59Z");
        assert_eq!(utc(1_735_689_599), "2024-12-31T23:59:59Z");
    }

    #[test]
    fn this_machine_has_a_processor_and_memory() {
        let machine = Machine::of(&Host::this_machine());
        assert!(machine.cores > 0 && machine.memory_mib > 0, "{machine:?}");
        assert!(!machine.cpu.is_empty() && !machine.kernel.is_empty(), "{machine:?}");
    }

    #[test]
    fn keys_match_whole_names() {
        let text = "model\t\t: 7\nmodel name\t: Some Processor\n";
        assert_eq!(value_of(text, "model name").as_deref(), Some("Some Processor"));
        assert_eq!(value_of(text, "mode"), None);
    }
}
