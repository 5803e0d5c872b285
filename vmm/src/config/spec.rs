//! A virtual machine as somebody asks for it: the options of `neap run`, on
//! the command line or in `vm.toml`. What they mean together is decided in
//! [`super::resolve`].

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use neap_memory::Backing;
use neap_memory::granule::{GranuleSize, Kind};
use neap_memory::policy::PolicyName;
use serde::Deserialize;

use super::keyvalue::{KeyValues, Keyed, lenient, lenient_option, number, number_option};
use super::tiers::EngineName;
use super::units::{Address, Bandwidth, CpuList, Percent, Size, Switch};
use crate::boot::kernel::Protocol;

/// Options of a virtual machine.
#[derive(Args, Deserialize, Clone, Debug, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct VmOptions {
    /// Kernel: a bzImage, a vmlinux, or any ELF with a PVH note
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,

    /// How to start the kernel [default: linux64 for Linux, pvh for any other ELF]
    #[arg(long, value_name = "linux64|pvh")]
    #[serde(deserialize_with = "lenient_option")]
    pub boot_protocol: Option<Protocol>,

    /// Initial RAM disk
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,

    /// Kernel command line [default: console=ttyS0 panic=-1]
    #[arg(long, value_name = "TEXT")]
    pub cmdline: Option<String>,

    /// Number of vCPUs, 1 to 64 [default: 1]
    #[arg(long, value_name = "N")]
    pub cpus: Option<u32>,

    /// Guest RAM: SIZE[,prefault=on][,backing=anon|memfd|hugetlb[:N]|node:N]
    /// [default: 512M]
    #[arg(long, value_name = "SIZE[,KEY=VALUE]")]
    pub memory: Option<KeyValues<MemoryOption>>,

    /// Give the guest a UEFI memory map too, with EFI_MEMORY_SP on SPM
    #[arg(long)]
    pub efi: bool,

    /// A NUMA node with vCPUs and RAM: node=N[,cpus=0-1][,memory=1G] (repeatable)
    #[arg(long, value_name = "KEY=VALUE,...")]
    pub numa: Vec<KeyValues<NumaOption>>,

    /// Distance between two nodes, both ways: FROM:TO=DISTANCE (repeatable)
    #[arg(long, value_name = "FROM:TO=N")]
    pub numa_distance: Vec<DistanceOption>,

    /// Latency in ns and bandwidth from the vCPUs of a node to the memory of another:
    /// FROM:TO,read-latency=300,write-latency=350,bandwidth=25G
    /// (also read-bandwidth=, write-bandwidth=; repeatable)
    #[arg(long, value_name = "FROM:TO,KEY=VALUE,...")]
    pub hmat: Vec<KeyValues<HmatOption>>,

    /// A device region. The guest sees size= of it as special-purpose memory; pool= is kept for
    /// guest memory that Neap moves there, and size= may be 0 then:
    /// size=512M[,pool=1G][,kind=public|private|generic][,addr=0x100000000][,node=1]
    /// [,backing=anon|memfd|hugetlb[:N]|node:N|dax:PATH][,engine=move|remap|node] (repeatable)
    #[arg(long, value_name = "KEY=VALUE,...")]
    pub device_memory: Vec<KeyValues<DeviceMemoryOption>>,

    /// What moves to device memory by itself [default: static]: nothing; what is touched first,
    /// while there is room; what the device touches; or what is used most
    #[arg(long, value_name = "static|first-touch|on-fault|heat")]
    #[serde(deserialize_with = "lenient_option")]
    pub policy: Option<PolicyName>,

    /// Bytes a second that policy heat may move [default: 100M]
    #[arg(long, value_name = "SIZE")]
    #[serde(deserialize_with = "lenient_option")]
    pub heat_budget: Option<Size>,

    /// Milliseconds from one look of policy heat at what is used to the next, 10 to 10000
    /// [default: 100]
    #[arg(long, value_name = "MS")]
    pub heat_period: Option<u32>,

    /// Percent of the guest's time that looking at what is used may cost, 0.01 to 10 [default: 1]
    #[arg(long, value_name = "PERCENT")]
    #[serde(deserialize_with = "lenient_option")]
    pub heat_cost: Option<Percent>,

    /// Write what policy heat sees to this new file, for `neap bench heat --trace`
    #[arg(long, value_name = "FILE")]
    pub heat_trace: Option<PathBuf>,

    /// How much memory moves at once [default: 2M]
    #[arg(long, value_name = "4K|64K|2M")]
    #[serde(deserialize_with = "lenient_option")]
    pub granule: Option<GranuleSize>,

    /// Threads that copy what moves, 1 to 16 [default: 1]
    #[arg(long, value_name = "N")]
    pub copy_threads: Option<u8>,

    /// Make a socket for `neap ctl` at this path
    #[arg(long, value_name = "PATH")]
    pub api_socket: Option<PathBuf>,

    /// Write the number of exits, by kind and vCPU, to a file as JSON when the guest ends
    #[arg(long, value_name = "FILE")]
    pub exit_stats: Option<PathBuf>,
}

/// `--memory`.
#[derive(Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct MemoryOption {
    /// Bytes.
    #[serde(deserialize_with = "lenient")]
    pub size: Size,
    /// Whether every page is there before the guest starts.
    #[serde(default, deserialize_with = "lenient")]
    pub prefault: Switch,
    /// Kind of host memory.
    #[serde(default, deserialize_with = "lenient")]
    pub backing: Backing,
}

impl Keyed for MemoryOption {
    const FIRST: Option<&'static str> = Some("size");
}

/// `--numa`.
#[derive(Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct NumaOption {
    /// Node number.
    #[serde(deserialize_with = "number")]
    pub node: u32,
    /// vCPUs of the node.
    #[serde(default, deserialize_with = "lenient")]
    pub cpus: CpuList,
    /// Bytes of RAM.
    #[serde(default, deserialize_with = "lenient_option")]
    pub memory: Option<Size>,
}

impl Keyed for NumaOption {
    const REPEATED: &'static [&'static str] = &["cpus"];
}

/// A pair of nodes, `FROM:TO`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodePair {
    /// Node whose vCPUs access.
    pub from: u32,
    /// Node whose memory is accessed.
    pub to: u32,
}

impl FromStr for NodePair {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (from, to) = text.split_once(':')?;
            Some(Self { from: from.parse().ok()?, to: to.parse().ok()? })
        };
        parse().ok_or_else(|| format!("\"{text}\" is not a pair of nodes such as 0:1"))
    }
}

/// `--numa-distance`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DistanceOption {
    /// The two nodes.
    pub pair: NodePair,
    /// SLIT distance; 10 is local, 255 unreachable.
    pub distance: u8,
}

impl FromStr for DistanceOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (pair, distance) =
            text.split_once('=').ok_or_else(|| format!("\"{text}\" is not FROM:TO=DISTANCE"))?;
        let distance = distance
            .parse()
            .map_err(|_| format!("\"{distance}\" is not a distance from 10 to 255"))?;
        Ok(Self { pair: pair.parse()?, distance })
    }
}

impl<'de> Deserialize<'de> for DistanceOption {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        lenient(deserializer)
    }
}

/// `--hmat`.
#[derive(Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct HmatOption {
    /// The two nodes.
    #[serde(deserialize_with = "lenient")]
    pub nodes: NodePair,
    /// Nanoseconds.
    #[serde(default, deserialize_with = "number_option")]
    pub read_latency: Option<u64>,
    /// Nanoseconds.
    #[serde(default, deserialize_with = "number_option")]
    pub write_latency: Option<u64>,
    /// Both ways, where the other two say nothing.
    #[serde(default, deserialize_with = "lenient_option")]
    pub bandwidth: Option<Bandwidth>,
    /// Of reads.
    #[serde(default, deserialize_with = "lenient_option")]
    pub read_bandwidth: Option<Bandwidth>,
    /// Of writes.
    #[serde(default, deserialize_with = "lenient_option")]
    pub write_bandwidth: Option<Bandwidth>,
}

impl Keyed for HmatOption {
    const FIRST: Option<&'static str> = Some("nodes");
}

/// `--device-memory`.
#[derive(Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DeviceMemoryOption {
    /// Bytes of the SPM window; 0: none.
    #[serde(deserialize_with = "lenient")]
    pub size: Size,
    /// Bytes kept for guest memory that is moved there.
    #[serde(default, deserialize_with = "lenient_option")]
    pub pool: Option<Size>,
    /// What its frames are to vCPUs.
    #[serde(default, deserialize_with = "lenient")]
    pub kind: Kind,
    /// Guest-physical address; above RAM if not given.
    #[serde(default, deserialize_with = "lenient_option")]
    pub addr: Option<Address>,
    /// NUMA node that it belongs to.
    #[serde(default, deserialize_with = "number_option")]
    pub node: Option<u32>,
    /// Kind of host memory.
    #[serde(default, deserialize_with = "lenient")]
    pub backing: Backing,
    /// How granules move, if somebody said.
    #[serde(default, deserialize_with = "lenient_option")]
    pub engine: Option<EngineName>,
}

impl Keyed for DeviceMemoryOption {}

impl VmOptions {
    /// These options over those of a file: a single value given here wins, and
    /// lists are the file's with these behind them.
    pub fn over(mut self, file: Self) -> Self {
        fn joined<T>(mut first: Vec<T>, second: Vec<T>) -> Vec<T> {
            first.extend(second);
            first
        }
        self.kernel = self.kernel.or(file.kernel);
        self.boot_protocol = self.boot_protocol.or(file.boot_protocol);
        self.initrd = self.initrd.or(file.initrd);
        self.cmdline = self.cmdline.or(file.cmdline);
        self.cpus = self.cpus.or(file.cpus);
        self.memory = self.memory.or(file.memory);
        self.efi |= file.efi;
        self.exit_stats = self.exit_stats.or(file.exit_stats);
        self.policy = self.policy.or(file.policy);
        self.heat_budget = self.heat_budget.or(file.heat_budget);
        self.heat_period = self.heat_period.or(file.heat_period);
        self.heat_cost = self.heat_cost.or(file.heat_cost);
        self.heat_trace = self.heat_trace.or(file.heat_trace);
        self.granule = self.granule.or(file.granule);
        self.copy_threads = self.copy_threads.or(file.copy_threads);
        self.api_socket = self.api_socket.or(file.api_socket);
        self.numa = joined(file.numa, self.numa);
        self.numa_distance = joined(file.numa_distance, self.numa_distance);
        self.hmat = joined(file.hmat, self.hmat);
        self.device_memory = joined(file.device_memory, self.device_memory);
        self
    }
}
