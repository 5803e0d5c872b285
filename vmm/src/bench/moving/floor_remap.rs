//! The floor for files in memory: a program that maps one granule at a time
//! over another, and knows nothing of pools, states or faults. Everything is
//! watched before it starts. For each granule:
//!
//! 1. write-protect it in the guest's mapping, so that writers wait,
//! 2. copy it from the one file's alias to the other's,
//! 3. map the other file's place over it,
//! 4. watch the new mapping, and wake who waits.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use neap_memory::guest::RangeSpec;
use neap_memory::hva::{Hva, HvaRange};
use neap_memory::region::{Region, Source};
use neap_memory::uffd::abi::Door;
use neap_memory::uffd::{Features, Modes, Userfaultfd};
use neap_memory::{GuestMemory, backing};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, mmap};

use super::floor_move::range_of;
use super::host::{Places, SmallPages};
use super::{BenchError, Side, Spent, Variant, Way, system, window};
use crate::bare::Guest;

/// The program with its guest.
#[derive(Debug)]
pub struct FloorRemap {
    // In the order in which they are to go.
    guest: Guest,
    uffd: Userfaultfd,
    memory: Arc<GuestMemory>,
    home: Region,
    device: Region,
    home_file: OwnedFd,
    device_file: OwnedFd,
    granule: usize,
    _small: Option<SmallPages>,
}

impl FloorRemap {
    /// A guest of `size` bytes and a device file of as many, all present.
    ///
    /// # Errors
    /// Too little memory of that kind, or a kernel that cannot write-protect
    /// it.
    pub fn new(
        variant: Variant,
        backing: neap_memory::Backing,
        size: u64,
        places: &Places,
    ) -> Result<Self, BenchError> {
        let small = variant.small_pages().then(SmallPages::only).transpose()?;
        let spec = RangeSpec { range: window(size)?, backing, prefault: true };
        let memory = Arc::new(GuestMemory::new(&[spec])?);
        let home_file = memory
            .file(0)
            .ok_or_else(|| BenchError::Unexpected("guest memory without a file".into()))?
            .try_clone_to_owned()
            .map_err(|source| BenchError::System { what: "dup", source })?;
        if backing == neap_memory::Backing::Hugetlb {
            backing::check_huge_pages(size)?;
        }
        let device_file = backing::file(size, backing)?;
        let alias = |file: &OwnedFd| -> Result<Region, Errno> {
            let region = Region::map(size as usize, Source::File(file.as_fd()))?;
            region.advise(0, Advice::LinuxPopulateWrite)?;
            Ok(region)
        };
        let home = alias(&home_file).map_err(system("an alias"))?;
        let device = alias(&device_file).map_err(system("an alias"))?;
        let needed = Features::WRITE_PROTECT.with(Features::WRITE_PROTECT_FILES);
        let uffd = Userfaultfd::open(needed, &[Door::SystemCall, Door::Device])
            .map_err(|error| BenchError::Unable(error.to_string()))?;
        if !uffd.opened().features.contains(needed) {
            return Err(BenchError::Unable(
                "this kernel cannot write-protect files in memory (since Linux 5.19)".into(),
            ));
        }
        let all = HvaRange::new(Hva(memory.slots()[0].hva as usize), size as usize);
        uffd.register(all, Modes::WriteProtect).map_err(system("UFFDIO_REGISTER"))?;
        let guest = Guest::new(Arc::clone(&memory), 1)?;
        places.pin(&guest)?;
        let granule = variant.granule().bytes() as usize;
        let _small = small;
        Ok(Self { guest, uffd, memory, home, device, home_file, device_file, granule, _small })
    }

    /// Moves one granule and answers how long the copy took.
    fn one(&self, granule: u64, way: Way) -> Result<Duration, BenchError> {
        let offset = granule as usize * self.granule;
        let guest = Hva(self.memory.slots()[0].hva as usize).offset(offset);
        let guest = HvaRange::new(guest, self.granule);
        let (from, to, file) = match way {
            Way::Out => (&self.home, &self.device, &self.device_file),
            Way::Back => (&self.device, &self.home, &self.home_file),
        };
        let place = |region| range_of(region).start().offset(offset);
        self.uffd.write_protect(guest, true).map_err(system("UFFDIO_WRITEPROTECT"))?;
        let since = Instant::now();
        // SAFETY: aliases that `self` owns, apart and mapped; writers to the
        // source wait.
        unsafe {
            let (from, to) = (place(from), place(to));
            std::ptr::copy_nonoverlapping(from.as_ptr(), to.as_ptr(), self.granule);
        }
        let copying = since.elapsed();
        // SAFETY: guest memory that `self.memory` keeps mapped and that only
        // vCPUs access; the new mapping is of the same kind and contents.
        unsafe {
            mmap(
                guest.start().as_ptr().cast(),
                guest.len(),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::FIXED,
                file,
                offset as u64,
            )
        }
        .map_err(system("mmap"))?;
        self.uffd.register(guest, Modes::WriteProtect).map_err(system("UFFDIO_REGISTER"))?;
        self.uffd.wake(guest).map_err(system("UFFDIO_WAKE"))?;
        Ok(copying)
    }
}

impl Side for FloorRemap {
    fn send(&mut self, granules: &[u64], way: Way) -> Result<Spent, BenchError> {
        let since = Instant::now();
        let mut copying = Duration::ZERO;
        for granule in granules {
            copying += self.one(*granule, way)?;
        }
        Ok(Spent { elapsed: since.elapsed(), copying })
    }

    fn guest(&mut self) -> &mut Guest {
        &mut self.guest
    }
}
