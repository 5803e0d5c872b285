//! The guest-physical memory map: RAM around the 32-bit hole, and one window
//! of special-purpose memory (SPM) for each device region. Pure.
//!
//! Invariants of a [`Layout`]: its ranges are sorted within each list, none
//! overlaps another, none touches the 32-bit hole, none reaches past the
//! processor's physical address bits.

use crate::addr::{GIB, Gpa, GpaRange, HUGE_PAGE_SIZE, MIB, display_size};

/// The 32-bit hole: PCI memory, ECAM, IOAPIC and local APIC live here and no
/// RAM does.
pub const HOLE_BASE: Gpa = Gpa(3 * GIB);
/// End of the 32-bit hole; RAM goes on here.
pub const HOLE_END: Gpa = Gpa(4 * GIB);
/// Alignment that every SPM window must have: a huge page, which is also the
/// alignment of a device-dax instance.
pub const SPM_ALIGN: u64 = HUGE_PAGE_SIZE;
/// Least RAM that a guest can have.
pub const MIN_RAM: u64 = 64 * MIB;
/// Linux onlines memory in blocks of at least this size on x86_64
/// (`MIN_MEMORY_BLOCK_SIZE`, arch/x86/mm/init_64.c); kmem drops what does not
/// fill a block.
pub const MEMORY_BLOCK: u64 = 128 * MIB;
/// The largest block that Linux uses, from [`LARGE_RAM`] on
/// (`MAX_BLOCK_SIZE` in the same file).
pub const LARGE_MEMORY_BLOCK: u64 = 2 * GIB;
/// From this end of memory on Linux may use larger blocks
/// (`MEM_SIZE_FOR_LARGE_BLOCK` in the same file).
pub const LARGE_RAM: u64 = 64 * GIB;

/// One SPM window as somebody asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowRequest {
    /// Bytes.
    pub size: u64,
    /// Where; above RAM if nobody says.
    pub addr: Option<Gpa>,
}

/// Where RAM and SPM lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    ram: Vec<GpaRange>,
    windows: Vec<GpaRange>,
}

/// Why a memory map cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// RAM below [`MIN_RAM`].
    #[error("{} is too little: at least {}", display_size(*.0), display_size(MIN_RAM))]
    RamTooSmall(u64),
    /// RAM that is not whole huge pages.
    #[error("{} is not a multiple of {}", display_size(*.0), display_size(HUGE_PAGE_SIZE))]
    RamMisaligned(u64),
    /// RAM past the physical address bits.
    #[error(
        "{} does not fit the {bits} physical address bits of this processor: at most {}",
        display_size(*.size),
        display_size((1u64 << (*bits).min(63)).saturating_sub(HOLE_END.0 - HOLE_BASE.0))
    )]
    RamTooLarge {
        /// Bytes asked for.
        size: u64,
        /// MAXPHYADDR.
        bits: u8,
    },
    /// A window that cannot be.
    #[error("{reason}")]
    Window {
        /// Its index in the request.
        index: usize,
        /// Why.
        reason: WindowError,
    },
}

/// Why an SPM window cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WindowError {
    /// No bytes.
    #[error("size=0: give it at least {}, or a pool=", display_size(SPM_ALIGN))]
    Empty,
    /// Size that is not whole huge pages.
    #[error("size={} is not a multiple of {}", display_size(*.0), display_size(SPM_ALIGN))]
    SizeMisaligned(u64),
    /// Address that is no multiple of a huge page.
    #[error("addr={} is not a multiple of {}", .0, display_size(SPM_ALIGN))]
    AddrMisaligned(Gpa),
    /// The end passes 2^64.
    #[error("addr={addr},size={} wraps around the end of the address space", display_size(*.size))]
    Wraps {
        /// Start.
        addr: Gpa,
        /// Bytes.
        size: u64,
    },
    /// Past MAXPHYADDR.
    #[error("{range} is beyond the {bits} physical address bits of this processor: end at or below {:#x}", 1u128 << *.bits)]
    BeyondAddressBits {
        /// The window.
        range: GpaRange,
        /// MAXPHYADDR.
        bits: u8,
    },
    /// Overlap with something else.
    #[error("{range} overlaps {what} at {other}: choose another addr=, or leave it out")]
    Overlaps {
        /// The window.
        range: GpaRange,
        /// What is there.
        what: Occupant,
        /// Where that is.
        other: GpaRange,
    },
}

/// What an SPM window can collide with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occupant {
    /// Guest RAM.
    Ram,
    /// The 32-bit hole.
    Hole,
    /// The window with this index.
    Window(usize),
}

impl std::fmt::Display for Occupant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ram => f.write_str("RAM"),
            Self::Hole => f.write_str("the 32-bit hole"),
            Self::Window(index) => write!(f, "device region {index}"),
        }
    }
}

impl Layout {
    /// Lays out `ram` bytes of RAM and the windows for a processor with
    /// `address_bits` physical address bits. Windows without an address go to
    /// the lowest free place above RAM, on a memory-block boundary.
    pub fn new(ram: u64, windows: &[WindowRequest], address_bits: u8) -> Result<Self, LayoutError> {
        let ram = place_ram(ram, address_bits)?;
        let windows = place_windows(&ram, windows, address_bits)?;
        Ok(Self { ram, windows })
    }

    /// RAM, below and above the 32-bit hole.
    pub fn ram(&self) -> &[GpaRange] {
        &self.ram
    }

    /// SPM windows in the order in which they were asked for.
    pub fn windows(&self) -> &[GpaRange] {
        &self.windows
    }

    /// Bytes of a memory block as Linux in the guest will choose it, at the
    /// most: windows that are multiples of it lose nothing to kmem.
    pub fn memory_block(&self) -> u64 {
        memory_block(&self.ram)
    }

    /// Deals RAM out in order of address: the first `sizes[0]` bytes to 0 and
    /// so on. Returns (index, range) pairs; the sizes must add up to RAM.
    pub fn deal_ram(&self, sizes: &[u64]) -> Vec<(usize, GpaRange)> {
        let mut dealt = Vec::new();
        let mut ranges = self.ram.iter().copied();
        let mut current = ranges.next();
        for (index, &size) in sizes.iter().enumerate() {
            let mut left = size;
            while left > 0 {
                let Some(range) = current else { return dealt };
                let take = left.min(range.size());
                dealt.extend(GpaRange::new(range.base(), take).map(|part| (index, part)));
                current = GpaRange::new(Gpa(range.base().0 + take), range.size() - take)
                    .or_else(|| ranges.next());
                left -= take;
            }
        }
        dealt
    }
}

fn memory_block(ram: &[GpaRange]) -> u64 {
    match ram.last() {
        Some(last) if last.end().0 >= LARGE_RAM => LARGE_MEMORY_BLOCK,
        _ => MEMORY_BLOCK,
    }
}

fn place_ram(size: u64, bits: u8) -> Result<Vec<GpaRange>, LayoutError> {
    if size < MIN_RAM {
        return Err(LayoutError::RamTooSmall(size));
    }
    if !size.is_multiple_of(HUGE_PAGE_SIZE) {
        return Err(LayoutError::RamMisaligned(size));
    }
    let low = size.min(HOLE_BASE.0);
    let mut ram: Vec<GpaRange> = GpaRange::new(Gpa(0), low).into_iter().collect();
    if size > low {
        let high = GpaRange::new(HOLE_END, size - low)
            .filter(|range| within_bits(range, bits))
            .ok_or(LayoutError::RamTooLarge { size, bits })?;
        ram.push(high);
    }
    Ok(ram)
}

fn within_bits(range: &GpaRange, bits: u8) -> bool {
    u128::from(range.end().0) <= 1u128 << bits
}

fn place_windows(
    ram: &[GpaRange],
    requests: &[WindowRequest],
    bits: u8,
) -> Result<Vec<GpaRange>, LayoutError> {
    let mut placed: Vec<Option<GpaRange>> = vec![None; requests.len()];
    // Fixed ones first, so that the others can go around them.
    for (index, request) in requests.iter().enumerate() {
        let Some(addr) = request.addr else { continue };
        let window = check_window(*request, addr, bits)
            .and_then(|range| check_free(range, ram, &placed))
            .map_err(|reason| LayoutError::Window { index, reason })?;
        placed[index] = Some(window);
    }
    let block = memory_block(ram);
    let ram_end = ram.last().map_or(HOLE_END, |last| last.end().max(HOLE_END));
    let mut taken: Vec<GpaRange> = placed.iter().flatten().copied().collect();
    taken.sort_unstable();
    for (index, request) in requests.iter().enumerate() {
        if request.addr.is_some() {
            continue;
        }
        let window = place_freely(*request, ram_end, block, &taken, bits)
            .map_err(|reason| LayoutError::Window { index, reason })?;
        placed[index] = Some(window);
        taken.insert(taken.partition_point(|other| other.base() < window.base()), window);
    }
    Ok(placed.into_iter().flatten().collect())
}

/// The lowest place above RAM that is free and begins on a memory block.
/// `taken` is disjoint and in order of address.
fn place_freely(
    request: WindowRequest,
    from: Gpa,
    block: u64,
    taken: &[GpaRange],
    bits: u8,
) -> Result<GpaRange, WindowError> {
    let at = |from: Gpa| {
        let addr =
            from.align_up(block).ok_or(WindowError::Wraps { addr: from, size: request.size })?;
        check_window(request, addr, bits)
    };
    let mut window = at(from)?;
    for other in taken {
        if other.overlaps(&window) {
            window = at(other.end())?;
        }
    }
    Ok(window)
}

fn check_window(request: WindowRequest, addr: Gpa, bits: u8) -> Result<GpaRange, WindowError> {
    let size = request.size;
    if size == 0 {
        return Err(WindowError::Empty);
    }
    if !size.is_multiple_of(SPM_ALIGN) {
        return Err(WindowError::SizeMisaligned(size));
    }
    if !addr.is_aligned(SPM_ALIGN) {
        return Err(WindowError::AddrMisaligned(addr));
    }
    let range = GpaRange::new(addr, size).ok_or(WindowError::Wraps { addr, size })?;
    if !within_bits(&range, bits) {
        return Err(WindowError::BeyondAddressBits { range, bits });
    }
    Ok(range)
}

fn check_free(
    range: GpaRange,
    ram: &[GpaRange],
    placed: &[Option<GpaRange>],
) -> Result<GpaRange, WindowError> {
    let ram = ram.iter().map(|other| (Occupant::Ram, *other));
    let hole = GpaRange::new(HOLE_BASE, HOLE_END.0 - HOLE_BASE.0);
    let hole = hole.into_iter().map(|other| (Occupant::Hole, other));
    let windows =
        placed.iter().enumerate().filter_map(|(i, other)| Some((Occupant::Window(i), (*other)?)));
    for (what, other) in ram.chain(hole).chain(windows) {
        if range.overlaps(&other) {
            return Err(WindowError::Overlaps { range, what, other });
        }
    }
    Ok(range)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::addr::TIB;

    fn window(size: u64, addr: Option<u64>) -> WindowRequest {
        WindowRequest { size, addr: addr.map(Gpa) }
    }

    fn reason(result: Result<Layout, LayoutError>) -> (usize, WindowError) {
        match result {
            Err(LayoutError::Window { index, reason }) => (index, reason),
            other => panic!("not refused for a window: {other:?}"),
        }
    }

    #[test]
    fn ram_is_split_by_the_hole() {
        let layout = Layout::new(4 * GIB, &[], 46).unwrap();
        let expected =
            [GpaRange::new(Gpa(0), 3 * GIB).unwrap(), GpaRange::new(Gpa(4 * GIB), GIB).unwrap()];
        assert_eq!(layout.ram(), expected);
        assert_eq!(Layout::new(3 * GIB, &[], 46).unwrap().ram(), &expected[..1]);
    }

    #[test]
    fn too_little_or_crooked_ram_is_refused() {
        assert_eq!(Layout::new(0, &[], 46), Err(LayoutError::RamTooSmall(0)));
        assert_eq!(
            Layout::new(64 * MIB + 4096, &[], 46),
            Err(LayoutError::RamMisaligned(64 * MIB + 4096))
        );
    }

    #[test]
    fn a_tebibyte_fits_and_more_than_maxphyaddr_does_not() {
        assert!(Layout::new(2 * TIB, &[], 46).is_ok());
        let refused = Layout::new(2 * TIB, &[], 40);
        assert_eq!(refused, Err(LayoutError::RamTooLarge { size: 2 * TIB, bits: 40 }));
    }

    #[test]
    fn spm_goes_above_ram_on_a_memory_block() {
        let layout = Layout::new(64 * MIB, &[window(2 * MIB, None), window(4 * MIB, None)], 46);
        let windows = layout.unwrap().windows().to_vec();
        assert_eq!(windows[0].base(), HOLE_END);
        assert_eq!(windows[1].base(), Gpa(HOLE_END.0 + MEMORY_BLOCK));
        let around = [
            window(2 * MIB, Some(4 * GIB)),
            window(4 * MIB, None),
            window(2 * MIB, Some((1 << 46) - 2 * MIB)),
        ];
        let layout = Layout::new(64 * MIB, &around, 46).unwrap();
        assert_eq!(layout.windows()[1].base(), Gpa(HOLE_END.0 + MEMORY_BLOCK));
        let large = Layout::new(64 * GIB, &[window(2 * MIB, None)], 46).unwrap();
        assert!(large.windows()[0].base().is_aligned(LARGE_MEMORY_BLOCK));
    }

    #[test]
    fn bad_windows_are_refused_with_their_index() {
        let good = window(2 * MIB, Some(GIB));
        let refused = |bad| reason(Layout::new(64 * MIB, &[good, bad], 46));
        assert_eq!(refused(window(0, None)), (1, WindowError::Empty));
        assert_eq!(refused(window(MIB, None)), (1, WindowError::SizeMisaligned(MIB)));
        assert_eq!(refused(window(2 * MIB, Some(MIB))), (1, WindowError::AddrMisaligned(Gpa(MIB))));
        assert!(matches!(
            refused(window(u64::MAX - 2 * MIB + 1, Some(4 * GIB))).1,
            WindowError::Wraps { .. }
        ));
        assert!(matches!(
            refused(window(2 * MIB, Some(1 << 46))).1,
            WindowError::BeyondAddressBits { bits: 46, .. }
        ));
        for (addr, occupant) in
            [(0, Occupant::Ram), (3 * GIB, Occupant::Hole), (GIB, Occupant::Window(0))]
        {
            match refused(window(2 * MIB, Some(addr))) {
                (1, WindowError::Overlaps { what, .. }) => assert_eq!(what, occupant),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn ram_is_dealt_across_the_hole() {
        let layout = Layout::new(4 * GIB, &[], 46).unwrap();
        let dealt = layout.deal_ram(&[2 * GIB, 2 * GIB]);
        let expected = [
            (0, GpaRange::new(Gpa(0), 2 * GIB).unwrap()),
            (1, GpaRange::new(Gpa(2 * GIB), GIB).unwrap()),
            (1, GpaRange::new(Gpa(4 * GIB), GIB).unwrap()),
        ];
        assert_eq!(dealt, expected);
    }

    proptest! {
        #[test]
        fn what_is_accepted_never_overlaps(
            ram in 32u64..3000,
            windows in prop::collection::vec((0u64..200, prop::option::of(0u64..4096)), 0..6),
        ) {
            let requests: Vec<_> = windows
                .iter()
                .map(|&(size, addr)| window(size * 2 * MIB, addr.map(|a| a * 2 * MIB)))
                .collect();
            let Ok(layout) = Layout::new(ram * 2 * MIB, &requests, 40) else { return Ok(()) };
            let all: Vec<_> = layout.ram().iter().chain(layout.windows()).copied().collect();
            let hole = GpaRange::new(HOLE_BASE, GIB).unwrap();
            for (i, a) in all.iter().enumerate() {
                prop_assert!(!a.overlaps(&hole));
                prop_assert!(a.end().0 <= 1 << 40);
                for b in &all[i + 1..] {
                    prop_assert!(!a.overlaps(b), "{a} and {b}");
                }
            }
            prop_assert_eq!(layout.ram().iter().map(GpaRange::size).sum::<u64>(), ram * 2 * MIB);
            prop_assert_eq!(layout.windows().len(), requests.len());
            for (window, request) in layout.windows().iter().zip(&requests) {
                prop_assert_eq!(window.size(), request.size);
            }
        }
    }
}
