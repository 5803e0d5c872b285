//! What bad input gets: one line on stderr that names the option, the value
//! and what would do, exit status 1, and nothing left behind.
//!
//! None of these boots a guest; a KVM device is needed by the last few only.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "bad_input/cache.rs"]
mod cache;
#[path = "bad_input/kernel_tree.rs"]
mod kernel_tree;

use std::fs;
use std::path::Path;

use neap_tests::Neap;
use neap_tests::refusal::{Folder, refused};
use neap_vmm::payload;
use rustix::fs::{FileType, Mode, mknodat};

/// A kernel image that is refused.
#[track_caller]
fn kernel_refused(path: &Path, parts: &[&str]) {
    let neap = Neap::new(["run", "--kernel"]).args([path]);
    refused(neap, &[&["--kernel", path.to_str().unwrap()], parts].concat());
}

mod kernel {
    use super::*;

    #[test]
    fn that_nobody_named() {
        refused(Neap::new(["run"]), &["--kernel", "missing"]);
    }

    #[test]
    fn that_is_not_there() {
        kernel_refused(Path::new("/nonexistent/vmlinux"), &["No such file"]);
    }

    #[test]
    fn with_a_line_break_in_its_name_is_still_one_line() {
        refused(Neap::new(["run", "--kernel", "/nonexistent/vm\nlinux"]), &["vm\\nlinux"]);
    }

    #[test]
    fn that_is_a_folder_or_a_device() {
        kernel_refused(Path::new("/tmp"), &["not a regular file"]);
        kernel_refused(Path::new("/dev/zero"), &["not a regular file"]);
    }

    #[test]
    fn that_is_a_named_pipe_does_not_block() {
        let folder = Folder::new();
        let path = folder.path("pipe");
        mknodat(rustix::fs::CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        kernel_refused(&path, &["not a regular file"]);
    }

    #[test]
    fn that_is_a_text_or_empty() {
        let folder = Folder::new();
        let text = folder.file("text", b"vmlinux, but as a text\n");
        kernel_refused(&text, &["neither a bzImage nor an ELF"]);
        kernel_refused(&folder.file("empty", b""), &["neither a bzImage nor an ELF"]);
    }

    #[test]
    fn that_was_cut_short() {
        let folder = Folder::new();
        let elf = payload::hello_elf();
        kernel_refused(&folder.file("cut", &elf[..elf.len() - 1]), &["cut short"]);
        kernel_refused(&folder.file("head", &elf[..40]), &["cut short"]);
    }

    #[test]
    fn that_is_a_bzimage_cut_short() {
        let images = neap_vmm::images::locate().unwrap();
        let whole = fs::read(images.bzimage).unwrap();
        let folder = Folder::new();
        for length in [0x210, 4096, whole.len() / 2] {
            kernel_refused(&folder.file("bzImage", &whole[..length]), &["cut short"]);
        }
    }

    #[test]
    fn that_is_for_another_machine() {
        let folder = Folder::new();
        let mut elf = payload::hello_elf();
        elf[18] = 183; // EM_AARCH64
        kernel_refused(&folder.file("arm", &elf), &["another machine", "183"]);
        let mut elf = payload::hello_elf();
        elf[4] = 1; // ELFCLASS32
        kernel_refused(&folder.file("narrow", &elf), &["64-bit"]);
    }

    #[test]
    fn that_has_no_pvh_note() {
        let folder = Folder::new();
        let elf = payload::hello_elf();
        let at = elf.windows(4).position(|four| four == b"Xen\0").unwrap();
        let mut without = elf.clone();
        without[at] = b'Y';
        kernel_refused(&folder.file("no-note", &without), &["PVH note"]);
    }

    #[test]
    fn that_starts_by_pvh_with_efi() {
        refused(Folder::new().run("--efi"), &["--efi", "PVH"]);
    }

    #[test]
    fn that_is_a_bzimage_by_pvh() {
        let images = neap_vmm::images::locate().unwrap();
        let neap = Neap::new(["run", "--boot-protocol", "pvh", "--kernel"]).args([images.bzimage]);
        refused(neap, &["--boot-protocol", "bzImage"]);
    }
}

mod initrd {
    use super::*;

    #[test]
    fn that_is_not_there() {
        refused(
            Folder::new().run("--initrd /nonexistent/initrd"),
            &["--initrd", "/nonexistent/initrd", "No such file"],
        );
    }

    #[test]
    fn that_is_larger_than_ram() {
        let folder = Folder::new();
        let path = folder.path("initrd");
        fs::File::create(&path).unwrap().set_len(65 << 20).unwrap();
        let options = format!("--memory 64M --initrd {}", path.display());
        refused(folder.run(&options), &["--initrd", "65M", "more --memory"]);
    }

    #[test]
    fn that_is_empty() {
        let folder = Folder::new();
        let path = folder.file("initrd", b"");
        refused(
            folder.run(&format!("--initrd {}", path.display())),
            &["--initrd", "not a regular"],
        );
    }
}

mod regions {
    use super::*;

    #[track_caller]
    fn region_refused(region: &str, parts: &[&str]) {
        let folder = Folder::new();
        let neap = folder.run(&format!("--device-memory {region}"));
        refused(neap, &[&["--device-memory"], parts].concat());
    }

    #[test]
    fn that_overlap_something() {
        region_refused("size=2M,addr=0", &["overlaps RAM", "addr="]);
        region_refused("size=2M,addr=0xc0000000", &["32-bit hole"]);
        region_refused("size=2M,addr=0xfee00000", &["32-bit hole"]);
        region_refused(
            "size=4M,addr=0x100000000 --device-memory size=4M,addr=0x100200000",
            &["region 1", "overlaps device region 0"],
        );
    }

    #[test]
    fn that_are_misaligned() {
        region_refused("size=2M,addr=0x100100000", &["0x100100000", "multiple of 2M"]);
        region_refused("size=3M", &["size=3M", "multiple of 2M"]);
    }

    #[test]
    fn that_have_no_size() {
        region_refused("size=0", &["size=0", "at least 2M", "pool="]);
        region_refused("node=0", &["missing field \"size\""]);
    }

    #[test]
    fn that_wrap_around() {
        region_refused("size=0xffffffffffe00000,addr=0x200000", &["wraps"]);
        region_refused("size=99999999T", &["2^64"]);
    }

    #[test]
    fn that_are_beyond_the_address_bits() {
        region_refused("size=2M,addr=0x10000000000000", &["physical address bits"]);
    }

    #[test]
    fn with_keys_and_values_that_do_not_exist() {
        region_refused("size=2M,colour=red", &["colour"]);
        region_refused("size=2M,backing=gpu", &["gpu", "anon, memfd, hugetlb"]);
        region_refused("size=2M,size=4M", &["size= is given twice"]);
        region_refused("size=many", &["many", "512M"]);
    }

    #[test]
    fn that_are_worth_a_warning_too() {
        let folder = Folder::new();
        let options = "--device-memory size=2M --initrd /nonexistent/initrd";
        refused(folder.run(options), &["--initrd", "No such file"]);
    }

    #[test]
    fn that_are_more_than_the_tables_hold() {
        region_refused(&["size=128M"; 4000].join(" --device-memory "), &["fewer device regions"]);
    }

    #[test]
    fn of_more_huge_pages_than_there_are() {
        region_refused("size=4T,backing=hugetlb", &["huge pages", "sysctl vm.nr_hugepages="]);
    }
}

mod pools {
    use super::*;

    #[track_caller]
    fn pool_refused(options: &str, parts: &[&str]) {
        refused(Folder::new().run(options), parts);
    }

    #[test]
    fn that_are_less_than_a_granule_or_no_whole_ones() {
        pool_refused("--device-memory size=0,pool=1M", &["--device-memory", "pool=1M", "2M"]);
        pool_refused("--device-memory size=0,pool=0", &["--device-memory", "pool=0", "2M"]);
        let options = "--granule 64K --device-memory size=2M --device-memory size=0,pool=100K";
        pool_refused(options, &["--device-memory", "region 1", "pool=100K", "multiple of 64K"]);
        let options = "--granule 4K --device-memory size=0,pool=16T";
        pool_refused(options, &["--device-memory", "pool=16T", "--granule"]);
    }

    #[test]
    fn of_a_region_without_a_window_that_has_an_address_or_a_node() {
        let options = "--device-memory size=0,pool=2M,addr=0x200000000";
        pool_refused(options, &["--device-memory", "addr=0x200000000", "size="]);
        let options = "--device-memory size=0,pool=2M,node=1";
        pool_refused(options, &["--device-memory", "node=1", "size="]);
    }

    #[test]
    fn that_the_granule_would_split() {
        let options = "--granule 64K --memory 512M,backing=hugetlb --api-socket /nonexistent/x";
        pool_refused(options, &["--granule", "64K", "hugetlb", "use --granule 2M"]);
        let options = "--granule 4K --memory 512M,backing=memfd \
                       --device-memory size=0,pool=2M,backing=hugetlb";
        pool_refused(options, &["--granule", "4K", "hugetlb", "use --granule 2M"]);
    }

    #[test]
    fn of_other_memory_than_ram() {
        let region = "--device-memory size=0,pool=2M";
        for (options, parts) in [
            (format!("{region},backing=memfd"), ["backing=memfd", "--memory 512M,backing="]),
            (format!("{region} --memory 1G,backing=memfd"), ["backing=anon", "--memory 1G,"]),
            (format!("{region},backing=memfd,engine=remap"), ["engine=remap", "--memory 512M,"]),
            (format!("{region},engine=remap"), ["engine=remap", "memfd or hugetlb"]),
            (format!("{region},engine=move,backing=memfd"), ["engine=move", "backing=anon"]),
        ] {
            pool_refused(&options, &[&["--device-memory"], &parts[..]].concat());
        }
        let options = "--api-socket /nonexistent/x --device-memory size=2M,backing=memfd";
        pool_refused(options, &["--device-memory", "backing=memfd", "--memory 512M,"]);
    }

    #[test]
    fn of_more_huge_pages_than_there_are() {
        let options = "--memory 512M,backing=hugetlb \
                       --device-memory size=0,pool=4T,backing=hugetlb";
        // 4 TiB and 512 MiB together.
        let parts = ["--memory and --device-memory", "2097408 huge pages", "vm.nr_hugepages="];
        pool_refused(options, &parts);
    }

    #[test]
    fn that_are_more_than_a_number_names() {
        let options = ["--device-memory size=0,pool=2M"; 256].join(" ");
        pool_refused(&options, &["--device-memory", "256", "at most 255"]);
    }

    #[test]
    fn with_values_that_do_not_exist() {
        let region = "--device-memory size=0,pool=2M";
        pool_refused(&format!("{region},kind=shared"), &["--device-memory", "shared", "generic"]);
        pool_refused(&format!("{region},engine=swap"), &["--device-memory", "swap", "remap"]);
        pool_refused("--device-memory size=0,pool=some", &["--device-memory", "some", "512M"]);
        pool_refused("--policy tides", &["--policy", "tides", "first-touch"]);
        pool_refused("--policy heat --heat-budget 0", &["--heat-budget", "0", "100M"]);
        pool_refused("--policy heat --heat-period 1", &["--heat-period", "1 ms", "10"]);
        pool_refused("--policy heat --heat-cost 0", &["--heat-cost", "0.01 to 10"]);
        pool_refused("--policy heat --heat-cost much", &["--heat-cost", "much", "0.5"]);
        let trace = "--policy heat --device-memory size=0,pool=2M --heat-trace /nonexistent/x";
        pool_refused(trace, &["--heat-trace /nonexistent/x", "No such file"]);
        pool_refused("--granule 1G", &["--granule", "1G", "64K"]);
        pool_refused("--copy-threads 0", &["--copy-threads", "0", "16"]);
        pool_refused("--copy-threads 17", &["--copy-threads", "17", "16"]);
        pool_refused("--copy-threads many", &["--copy-threads", "many"]);
    }
}

mod memory {
    use super::*;

    #[test]
    fn that_is_too_little_or_too_much() {
        refused(Folder::new().run("--memory 0"), &["--memory", "0 is too little", "64M"]);
        refused(Folder::new().run("--memory 100000T"), &["--memory", "address bits"]);
        refused(Folder::new().run("--memory 65M"), &["--memory", "multiple of 2M"]);
        refused(Folder::new().run("--memory lots"), &["--memory", "lots"]);
    }

    #[test]
    fn that_is_not_what_the_nodes_add_up_to() {
        refused(
            Folder::new().run("--memory 1G --numa node=0,memory=512M"),
            &["--numa", "512M", "1G"],
        );
        refused(Folder::new().run("--numa node=0,memory=2M"), &["--numa", "2M", "64M"]);
    }
}

mod nodes {
    use super::*;

    #[test]
    fn that_do_not_exist() {
        let folder = Folder::new();
        refused(folder.run("--numa-distance 0:3=20"), &["--numa-distance", "0:3", "node 3"]);
        refused(folder.run("--hmat 0:3,read-latency=9"), &["--hmat", "0:3", "node 3"]);
        refused(
            folder.run("--device-memory size=2M,node=7"),
            &["--device-memory", "node=7", "gaps"],
        );
        refused(folder.run("--numa node=99"), &["--numa", "node=99", "63"]);
        refused(folder.run("--numa node=-1"), &["--numa", "\"-1\"", "whole number"]);
        refused(
            folder.run("--hmat 0:0,read-latency=9999999999"),
            &["--hmat", "9999999999 ns", "at most 2147483"],
        );
    }

    #[test]
    fn with_vcpus_that_do_not_exist() {
        refused(Folder::new().run("--numa node=0,cpus=0-3"), &["--numa", "vCPU 1", "--cpus 1"]);
    }

    #[test]
    fn at_impossible_distances() {
        let folder = Folder::new();
        let two = "--numa node=0 --numa node=1";
        refused(folder.run(&format!("{two} --numa-distance 0:1=300")), &["--numa-distance", "300"]);
        refused(folder.run(&format!("{two} --numa-distance 0:1=5")), &["0:1=5", "11 to 255"]);
        refused(folder.run(&format!("{two} --numa-distance 0-1")), &["--numa-distance", "0-1"]);
    }
}

mod processors {
    use super::*;

    #[test]
    fn none_or_too_many_or_no_number() {
        for cpus in ["0", "65", "4294967296", "-1", "two"] {
            let folder = Folder::new();
            let neap = folder.run("").args([format!("--cpus={cpus}")]);
            refused(neap, &["--cpus", cpus]);
        }
    }
}

mod command_line {
    use super::*;

    #[test]
    fn that_is_too_long_for_the_kernel() {
        let folder = Folder::new();
        let neap = folder.run("").args(["--cmdline".to_owned(), "x".repeat(2048)]);
        refused(neap, &["--cmdline", "2048", "2047"]);
    }

    #[test]
    fn with_an_option_or_command_that_does_not_exist() {
        refused(Folder::new().run("--colour"), &["--colour"]);
        refused(Neap::new(["fly"]), &["fly"]);
    }
}

mod config {
    use super::*;

    #[track_caller]
    fn config_refused(text: &str, parts: &[&str]) {
        let folder = Folder::new();
        let path = folder.file("vm.toml", text.as_bytes());
        let neap = folder.run(&format!("--config {}", path.display()));
        refused(neap, &[&["--config", "vm.toml"], parts].concat());
    }

    #[test]
    fn with_mistakes_names_their_line() {
        config_refused("cpus = 1\ncolour = \"red\"\n", &["line 2", "colour"]);
        config_refused("[[device-memory]]\nsize = \"2M\"\nspeed = 1\n", &["speed"]);
        config_refused("\n\ncpus = \"many\"\n", &["line 3"]);
        config_refused("cpus = = 1\n", &["line 1"]);
    }

    #[test]
    fn that_is_not_there_or_never_ends() {
        refused(
            Neap::new(["run", "--config", "/nonexistent/vm.toml"]),
            &["--config", "No such file"],
        );
        refused(Neap::new(["run", "--config", "/dev/zero"]), &["--config", "/dev/zero"]);
    }
}

mod traces {
    use super::*;

    #[track_caller]
    fn trace_refused(bytes: &[u8], parts: &[&str]) {
        let folder = Folder::new();
        let path = folder.file("seen.trace", bytes);
        let neap = Neap::new(["bench", "heat", "--trace"]).args([path]);
        refused(neap, &[&["--trace", "seen.trace"], parts].concat());
    }

    #[test]
    fn that_are_wrong_name_their_line() {
        const HEAD: &str = "neap-heat-trace 1\ngranules 8 bytes 2097152 period-us 100000\n";
        trace_refused(b"", &["fill whole buffer"]);
        trace_refused(b"neap-heat-trace 9\n", &["line 1", "neap-heat-trace 1"]);
        trace_refused(format!("{HEAD}0 8 1 r slow\n").as_bytes(), &["line 3", "granule 8"]);
        trace_refused(format!("{HEAD}0 7 1 r slow\n0 7 1 x slow\n").as_bytes(), &["line 4", "x"]);
        trace_refused(&[HEAD.as_bytes(), &[b'1'; 1 << 20]].concat(), &["line 3", "no end"]);
    }
}

mod places {
    use super::*;

    #[test]
    fn for_exit_counts_that_cannot_be_written() {
        refused(
            Folder::new().run("--exit-stats /nonexistent/x"),
            &["--exit-stats", "/nonexistent/x"],
        );
    }
}
