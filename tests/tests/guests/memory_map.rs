//! What the guest's kernel takes from its memory map. A passing hmm-tests
//! proves nothing about *soft* reservation (a plain reserved range passes
//! too), so these look at the map itself.

use libtest_mimic::Trial;
use neap_tests::guest::Image;
use neap_tests::{Ended, Guest};

use crate::trial;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("memory_map::spm_is_soft_reserved_with_vmlinux", with_vmlinux),
        trial("memory_map::spm_is_soft_reserved_with_bzimage", with_bzimage),
        trial("memory_map::spm_is_soft_reserved_with_pvh", with_pvh),
        trial("memory_map::uefi_says_it_too_with_vmlinux", with_efi_vmlinux),
        trial("memory_map::uefi_says_it_too_with_bzimage", with_efi_bzimage),
        trial("memory_map::ram_lies_around_the_hole", ram_around_the_hole),
        trial("memory_map::spm_can_lie_below_4_gib", spm_below_4_gib),
        trial("memory_map::hundreds_of_gib_of_spm", large_spm),
    ]
}

const MAP: &str = "dmesg | grep -E 'BIOS-e820|efi:|Warning|WARNING'; cat /proc/iomem; grep MemTotal /proc/meminfo";
const WINDOW: &str = "0x0000000100000000-0x000000011fffffff";

fn spm_guest() -> Guest {
    Guest::script(MAP).options("--device-memory size=512M")
}

fn expect_soft_reserved(ended: &Ended) {
    let line = ended.expect_line(WINDOW);
    assert!(line.contains("BIOS-e820") && line.ends_with("soft reserved"), "{line}");
    ended.expect_line("100000000-11fffffff : Soft Reserved");
}

fn with_vmlinux() {
    expect_soft_reserved(&spm_guest().run());
}

fn with_bzimage() {
    expect_soft_reserved(&spm_guest().image(Image::BzImage).run());
}

fn with_pvh() {
    let ended = spm_guest().options("--boot-protocol pvh").run();
    // PVH's map goes through another path and prints the same.
    expect_soft_reserved(&ended);
}

/// The UEFI map alone must be right, too: with `efi=debug` the kernel prints
/// every descriptor with its attributes.
fn expect_uefi(guest: Guest) {
    let ended = guest.cmdline("efi=debug").run();
    expect_soft_reserved(&ended);
    let line = ended.expect_line("[0x0000000100000000-0x000000011fffffff]");
    assert!(line.contains("Conventional") && line.contains("SP"), "{line}");
    assert!(!ended.stdout.contains("WARNING"), "{}", ended.stdout);
}

fn with_efi_vmlinux() {
    expect_uefi(spm_guest().options("--efi"));
}

fn with_efi_bzimage() {
    expect_uefi(spm_guest().options("--efi").image(Image::BzImage));
}

fn ram_around_the_hole() {
    let ended = Guest::script(MAP).options("--memory 4G").run();
    ended.expect_line("[mem 0x0000000000100000-0x00000000bfffffff] usable");
    ended.expect_line("[mem 0x0000000100000000-0x000000013fffffff] usable");
    let total = ended.expect_line("MemTotal").split_whitespace().nth(1).unwrap();
    let total: u64 = total.parse().unwrap();
    // The kernel keeps some for itself: its image and 1.6 % for struct page.
    assert!((3_900_000..4 << 20).contains(&total), "{total} kB");
}

fn spm_below_4_gib() {
    let ended = Guest::script(MAP).options("--device-memory size=256M,addr=0x40000000").run();
    let line = ended.expect_line("0x0000000040000000-0x000000004fffffff");
    assert!(line.ends_with("soft reserved"), "{line}");
}

fn large_spm() {
    let ended = Guest::script(MAP).options("--device-memory size=512G,addr=0x8000000000").run();
    let line = ended.expect_line("0x0000008000000000-0x000000ffffffffff");
    assert!(line.ends_with("soft reserved"), "{line}");
}
