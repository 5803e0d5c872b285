//! mbind(2) and move_pages(2). Neither changes contents: they say where
//! pages come from, where they are, and where they shall be.
#![allow(unsafe_code)]

use std::ptr;

use rustix::io::Errno;

use crate::addr::{HUGE_PAGE_SIZE, PAGE_SIZE};
use crate::hva::HvaRange;

/// include/uapi/linux/mempolicy.h
const MPOL_BIND: libc::c_ulong = 2;
const MPOL_MF_MOVE: libc::c_ulong = 1 << 1;
/// Nodes that a mask has room for: `MAX_NUMNODES` of the largest kernel
/// (`CONFIG_NODES_SHIFT=10`).
const NODES: usize = 1024;
const BITS: usize = libc::c_ulong::BITS as usize;

/// Has the pages of `range` come from `nodes` and from no other; those that
/// are elsewhere already are moved, if nobody else uses them. A policy of its
/// own also keeps the kernel's balancing away from the range
/// (`vma_policy_mof` in mm/mempolicy.c).
///
/// # Errors
/// mbind(2)'s; ENOSYS on a kernel without NUMA.
pub fn bind(range: HvaRange, nodes: &[u32]) -> Result<(), Errno> {
    let mut mask = [0 as libc::c_ulong; NODES / BITS];
    for &node in nodes {
        let word = mask.get_mut(node as usize / BITS).ok_or(Errno::INVAL)?;
        *word |= 1 << (node as usize % BITS);
    }
    // SAFETY: the mask has as many bits as are named (the kernel takes one
    // off) and lives until after the call. No contents change, and a range
    // that is not ours is refused.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            range.start().as_ptr(),
            range.len(),
            MPOL_BIND,
            mask.as_ptr(),
            NODES as libc::c_ulong + 1,
            MPOL_MF_MOVE,
        )
    };
    if result == 0 { Ok(()) } else { Err(last_error()) }
}

/// Has the pages of `range` come from anywhere again.
///
/// # Errors
/// As [`bind`].
pub fn unbind(range: HvaRange) -> Result<(), Errno> {
    const MPOL_DEFAULT: libc::c_ulong = 0;
    // SAFETY: as in `bind`; this policy has no mask.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            range.start().as_ptr(),
            range.len(),
            MPOL_DEFAULT,
            ptr::null::<libc::c_ulong>(),
            0 as libc::c_ulong,
            0 as libc::c_ulong,
        )
    };
    if result == 0 { Ok(()) } else { Err(last_error()) }
}

/// Addresses of the pages of `range`: huge ones, or small ones.
pub fn pages(range: HvaRange, huge: bool) -> Vec<usize> {
    let step = if huge { HUGE_PAGE_SIZE } else { PAGE_SIZE } as usize;
    (range.start().0..range.end().0).step_by(step).collect()
}

/// The node of each page, or a negative error: ENOENT where there is none.
///
/// # Errors
/// move_pages(2)'s; ENOSYS on a kernel without NUMA.
pub fn nodes_of(pages: &[usize]) -> Result<Vec<i32>, Errno> {
    call(pages, None).map(|(status, _)| status)
}

/// Moves pages (of a huge page its first address) to `nodes`, one for each.
/// Returns the node of each page, or a negative error, and how many pages the
/// kernel says it did not come to, whose status is [`UNTOLD`].
///
/// # Errors
/// move_pages(2)'s, for all of them; some may have moved.
pub fn move_pages(pages: &[usize], nodes: &[i32]) -> Result<(Vec<i32>, usize), Errno> {
    debug_assert_eq!(pages.len(), nodes.len());
    call(pages, Some(nodes))
}

/// Status of a page that the kernel said nothing of.
pub const UNTOLD: i32 = i32::MIN;

fn call(pages: &[usize], nodes: Option<&[i32]>) -> Result<(Vec<i32>, usize), Errno> {
    /// include/uapi/linux/mempolicy.h: only pages that nobody else has.
    const MPOL_MF_MOVE: libc::c_int = 1 << 1;
    let mut status = vec![UNTOLD; pages.len()];
    // SAFETY: three arrays of as many entries, of pointers, of int and of int,
    // of which the kernel writes to the last only. Pages of this process are
    // moved or looked at; contents stay, and accesses wait meanwhile.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            0,
            pages.len(),
            pages.as_ptr(),
            nodes.map_or(ptr::null(), <[i32]>::as_ptr),
            status.as_mut_ptr(),
            MPOL_MF_MOVE,
        )
    };
    match usize::try_from(result) {
        Ok(left) => Ok((status, left)),
        Err(_) => Err(last_error()),
    }
}

fn last_error() -> Errno {
    let code = std::io::Error::last_os_error().raw_os_error();
    Errno::from_raw_os_error(code.unwrap_or(libc::EIO))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hva::Hva;
    use crate::numa::nodes;
    use crate::region::{Region, Source};

    #[test]
    fn pages_come_from_the_node_that_they_are_bound_to() {
        let Some(&node) = nodes::with_memory().first() else { return };
        let region = Region::map(64 << 10, Source::Anonymous).unwrap();
        let start = Hva(region.start().as_ptr().expose_provenance());
        let range = HvaRange::new(start, region.size());
        bind(range, &[node]).unwrap();
        let half = HvaRange::new(start, 32 << 10);
        region.advise(32 << 10, rustix::mm::Advice::LinuxPopulateWrite).unwrap();
        let found = nodes_of(&pages(range, false)).unwrap();
        let (absent, there) = found.split_at(8);
        assert!(absent.iter().all(|status| *status == -libc::ENOENT), "{found:?}");
        assert!(there.iter().all(|status| *status == node as i32), "{found:?}");
        let pages = pages(half, false);
        let (status, _) = move_pages(&pages, &vec![node as i32; pages.len()]).unwrap();
        assert!(status.iter().all(|status| *status < 0), "{status:?}");
    }

    #[test]
    fn nodes_that_cannot_be_are_refused() {
        let region = Region::map(4096, Source::Anonymous).unwrap();
        let range = HvaRange::new(Hva(region.start().as_ptr().expose_provenance()), 4096);
        assert_eq!(bind(range, &[1023]), Err(Errno::INVAL));
        assert_eq!(bind(range, &[NODES as u32]), Err(Errno::INVAL));
    }
}
