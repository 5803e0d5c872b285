//! What `neap ctl` prints of regions that are taken away and given back, and
//! of memory that fails.

use neap_memory::addr::display_size;

use crate::control::api::{PageFailed, Plugged, Unplugged};

pub(super) fn unplugged(answer: &Unplugged) -> String {
    let moved = format!("{} granules came home", answer.moved.granules);
    if answer.gone {
        let released = display_size(answer.released);
        return format!("the region is gone: {moved}, {released} of host memory are free\n");
    }
    let mut text = format!("the region serves on: {moved}, and this cannot:\n");
    for left in &answer.left {
        text += &format!("  {}+{} {}\n", left.base, display_size(left.size), left.outcome);
    }
    text
}

pub(super) fn plugged(answer: &Plugged) -> String {
    format!("the region is there: {} frames are free\n", answer.frames)
}

pub(super) fn page_failed(_: &PageFailed) -> String {
    "the page has failed\n".to_owned()
}
