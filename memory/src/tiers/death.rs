//! A thread that guest memory depends on must not die alone: whoever touches
//! a granule that is away would wait for ever, and if the userfaultfd were
//! closed it would read zeros. So its death ends the process, at once and
//! without dropping anything.

use std::thread;

/// Ends the process if it is dropped by a panic.
pub(crate) struct Death {
    who: &'static str,
    fatal: fn(&str) -> !,
}

impl Death {
    /// For the thread `who`.
    pub(crate) fn of(who: &'static str, fatal: fn(&str) -> !) -> Self {
        Self { who, fatal }
    }
}

impl Drop for Death {
    fn drop(&mut self) {
        if thread::panicking() {
            (self.fatal)(&format!("{} has died; guest memory cannot be served", self.who));
        }
    }
}
