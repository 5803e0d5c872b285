//! A copy of the installed QEMU without a fault that breaks guests.
//!
//! VMRUN with an interrupt to inject leaves the vector behind as a pending
//! exception: `helper_vmrun` (target/i386/tcg/sysemu/svm_helper.c, case
//! `SVM_EVTINJ_TYPE_INTR`) stores it in `exception_index` before it delivers
//! the interrupt by itself, and nothing takes it out again. If the emulated
//! CPU is next asked to leave its loop without an interrupt to take, the guest
//! gets the vector a second time, also where interrupts are off: on the first
//! instructions of the handler of the first, for instance, where the stack is
//! not yet its own. Guests hang or triple-fault (counted in ARCHITECTURE.md).
//! Without the store they do not; nothing reads it.
//!
//! The copy is in memory only and is made anew for each lab, which takes some
//! 20 ms. A QEMU that has no such place, or more than one, runs as it is.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{MemfdFlags, memfd_create};

/// A QEMU to start.
#[derive(Debug)]
pub(super) struct Mended {
    copy: OwnedFd,
    /// What the copy cannot find beside itself.
    share: Vec<PathBuf>,
    modules: Option<PathBuf>,
}

impl Mended {
    /// A copy of `program` without the fault, or `None` if it has none that is
    /// known.
    pub(super) fn of(program: &Path) -> io::Result<Option<Self>> {
        let program = program.canonicalize()?;
        let mut code = fs::read(&program)?;
        let Some(store) = leftover_store(&code) else { return Ok(None) };
        code[store].copy_from_slice(&NOTHING);
        // Kernels before 6.3 do not know that it can be said.
        let copy = memfd_create("neap-lab-qemu", MemfdFlags::CLOEXEC | MemfdFlags::EXEC)
            .or_else(|_| memfd_create("neap-lab-qemu", MemfdFlags::CLOEXEC))?;
        fs::File::from(copy.try_clone()?).write_all(&code)?;
        // <prefix>/bin/qemu-system-x86_64; where distributions keep the rest.
        let prefix = program.parent().and_then(Path::parent).unwrap_or(Path::new("/usr"));
        let present = |folders: &[&str]| {
            let folders = folders.iter().map(|folder| prefix.join(folder));
            folders.filter(|folder| folder.is_dir()).collect::<Vec<_>>()
        };
        let share = present(&["share/qemu", "share/seabios", "share/qemu-firmware"]);
        let modules = present(&["lib/x86_64-linux-gnu/qemu", "lib64/qemu", "lib/qemu"]);
        Ok(Some(Self { copy, share, modules: modules.into_iter().next() }))
    }

    /// What to execute, as long as this lives.
    pub(super) fn program(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.copy.as_raw_fd()).into()
    }

    /// Folders for `-L`.
    pub(super) fn share(&self) -> &[PathBuf] {
        &self.share
    }

    /// For `QEMU_MODULE_DIR`.
    pub(super) fn modules(&self) -> Option<&Path> {
        self.modules.as_deref()
    }
}

/// Whether the QEMU at `program` has the fault in a form that can be mended.
///
/// # Errors
/// It cannot be read.
pub fn can_be_mended(program: &Path) -> io::Result<bool> {
    Ok(leftover_store(&fs::read(program)?).is_some())
}

/// An instruction of six bytes that does nothing (Intel SDM, NOP).
const NOTHING: [u8; 6] = [0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00];

/// Where the one store is, if there is exactly one place like it.
///
/// As GCC compiles the case: the error code, the vector, `exception_is_int`,
/// `exception_next_eip`, a test whether to log, and the call with 1 as third
/// argument. All fields are reached from one base register; those of the
/// processor's state lie after it and `exception_index` before.
fn leftover_store(code: &[u8]) -> Option<std::ops::Range<usize>> {
    let mut found =
        (0..(code.len() + 1).saturating_sub(CASE)).filter_map(|at| store_in_case(code, at));
    let store = found.next()?;
    found.next().is_none().then_some(store)
}

/// Bytes of the case, from the error code to the call's opcode.
const CASE: usize = 56;

/// The store, if the code at `at` is the case.
fn store_in_case(code: &[u8], at: usize) -> Option<std::ops::Range<usize>> {
    // The rarest bytes first: this is asked at every byte.
    let case = code.get(at..at + CASE)?;
    if case[0] & 0xf8 != 0x40
        || case[7] != 0x89
        || case[13] != 0xc7
        || case[23..26] != [0x48, 0xc7, case[14]]
    {
        return None;
    }
    let displacement = |from: usize| {
        i32::from_le_bytes([case[from], case[from + 1], case[from + 2], case[from + 3]])
    };
    let base = case[14] & 7;
    let from_base = |modrm: u8| modrm & 0xc7 == 0x80 | base;
    let moves = case[1] == 0x89
        && from_base(case[2])
        && from_base(case[8])
        && case[14] == 0x80 | base
        // 4 as base would mean another byte.
        && base != 4;
    let fields = displacement(3) > 0
        && displacement(9) < 0
        && displacement(15) == displacement(3) + 4
        && case[19..23] == [0; 4]
        && displacement(26) == displacement(3) + 8
        && case[30..34] == [0xff; 4];
    // testb $CPU_LOG_TB_IN_ASM, qemu_loglevel; jne; mov $1, %edx; mov base,
    // %rdi; call.
    let rest = case[34..36] == [0xf6, 0x05]
        && case[40..43] == [0x02, 0x0f, 0x85]
        && case[47..52] == [0xba, 1, 0, 0, 0]
        && case[52..54] == [0x48, 0x89]
        && case[54] == 0xc7 | base << 3
        && case[55] == 0xe8;
    (moves && fields && rest).then_some(at + 7..at + 13)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The case with another base register and other fields.
    fn case(base: u8, state: i32, index: i32) -> Vec<u8> {
        let mut code = vec![0x44, 0x89, 0x80 | 5 << 3 | base];
        code.extend(state.to_le_bytes());
        code.extend([0x89, 0x80 | 6 << 3 | base]);
        code.extend(index.to_le_bytes());
        code.extend([0xc7, 0x80 | base]);
        code.extend((state + 4).to_le_bytes());
        code.extend([0; 4]);
        code.extend([0x48, 0xc7, 0x80 | base]);
        code.extend((state + 8).to_le_bytes());
        code.extend([0xff; 4]);
        code.extend([0xf6, 0x05, 1, 2, 3, 4, 0x02, 0x0f, 0x85, 5, 6, 7, 8]);
        code.extend([0xba, 1, 0, 0, 0, 0x48, 0x89, 0xc7 | base << 3, 0xe8]);
        assert_eq!(code.len(), CASE);
        code
    }

    #[test]
    fn the_store_is_found_where_it_is() {
        for base in [0, 3, 5] {
            let code = [vec![0x90; 100], case(base, 0x3380, -0x10ac), vec![0xcc; 9]].concat();
            let store = leftover_store(&code).unwrap();
            assert_eq!(store, 107..113);
            assert_eq!(code[store.start..store.start + 2], [0x89, 0xb0 | base]);
        }
    }

    #[test]
    fn what_is_not_quite_it_is_left_alone() {
        let whole = case(3, 0x3380, -0x10ac);
        // Two places: which one is it?
        assert_eq!(leftover_store(&[whole.clone(), whole.clone()].concat()), None);
        // A field of the processor's state.
        assert_eq!(leftover_store(&case(3, 0x3380, 0x10ac)), None);
        assert_eq!(leftover_store(&whole[..CASE - 1]), None);
        for at in (0..CASE).filter(|at| ![0, 2, 8].contains(at)) {
            let mut code = whole.clone();
            code[at] ^= 0x80;
            let operand = matches!(at, 3..=6 | 9..=12 | 15..=18 | 26..=29 | 36..=39 | 43..=46);
            assert!(leftover_store(&code).is_none() || operand, "byte {at}");
        }
    }

    #[test]
    fn no_program_is_an_error_and_another_program_has_no_such_place() {
        assert!(Mended::of(Path::new("/nowhere")).is_err());
        assert!(Mended::of(Path::new("/bin/true")).unwrap().is_none());
    }
}
