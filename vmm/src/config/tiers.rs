//! From `--policy`, `--granule`, `--copy-threads`, `--api-socket` and the
//! pools of the device regions to one [`TiersConfig`]. Pure.

use std::path::Path;

use neap_memory::Backing;
use neap_memory::addr::display_size;
pub use neap_memory::engine::EngineName;
use neap_memory::granule::{GranuleSize, Kind};
use neap_memory::policy::PolicyName;
use neap_memory::tiers::HeatConfig;

use super::ConfigError;
use super::heat::{self, HeatRequest};
use super::spec::{DeviceMemoryOption, MemoryOption};

/// Most device regions of a guest whose memory moves: a pool's number is a
/// byte.
pub const MAX_REGIONS: usize = 255;
/// Most threads that copy.
pub const MAX_COPY_THREADS: u8 = 16;
/// Longest path of a Unix socket in bytes (`sun_path` in unix(7), less its
/// NUL).
const MAX_SOCKET_PATH: usize = 107;

/// Kinds of memory that an engine moves.
fn backings(engine: EngineName) -> &'static str {
    match engine {
        EngineName::Move => "anon",
        EngineName::Remap => "memfd or hugetlb",
        EngineName::Node => "node:N",
    }
}

/// The engine for memory of this kind, if nobody names another.
fn engine_of(backing: Backing) -> EngineName {
    match backing {
        Backing::Anon | Backing::Node(_) => EngineName::Move,
        Backing::Memfd | Backing::Hugetlb | Backing::HugetlbNode(_) | Backing::Dax(_) => {
            EngineName::Remap
        }
    }
}

/// The engine of the whole machine.
fn choose_engine(request: &Request<'_>) -> Result<EngineName, ConfigError> {
    let named = |engine| {
        let of = |region: &&DeviceMemoryOption| moves(request, region);
        request.regions.iter().filter(of).any(|region| region.engine == Some(engine))
    };
    match (named(EngineName::Node), named(EngineName::Move)) {
        (true, true) => {
            let message = "engine=node and engine=move are of the whole machine: name one of them";
            Err(ConfigError::new("--device-memory", message))
        }
        (true, false) => Ok(EngineName::Node),
        (false, false) if suits_node(request) => Ok(EngineName::Node),
        (false, _) => Ok(engine_of(request.memory.backing)),
    }
}

/// Whether move_pages(2), which is the faster way between nodes (`neap bench
/// node`), can move all of the machine.
fn suits_node(request: &Request<'_>) -> bool {
    let mut regions = request.regions.iter().filter(|region| moves(request, region)).peekable();
    regions.peek().is_some()
        && request.memory.backing.is_anonymous()
        && request.granule.unwrap_or_default() == GranuleSize::M2
        // Those want pages that can be set aside.
        && !matches!(request.policy, Some(PolicyName::FirstTouch | PolicyName::Heat))
        && regions.all(|region| matches!(region.backing, Backing::Node(_)) && region.kind != Kind::Private)
}

/// How granules of guest memory are tracked and moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TiersConfig {
    /// Unit of tracking and moving.
    pub granule: GranuleSize,
    /// What moves by itself.
    pub policy: PolicyName,
    /// How memory moves; RAM and every region that moves are alike.
    pub engine: EngineName,
    /// Whether a region names it.
    pub engine_named: bool,
    /// Threads that copy, 1 to [`MAX_COPY_THREADS`].
    pub copy_threads: u8,
    /// Numbers of policy `heat`.
    pub heat: HeatConfig,
}

/// What the options say about moving memory.
#[derive(Debug)]
pub(super) struct Request<'a> {
    pub(super) memory: &'a MemoryOption,
    pub(super) regions: &'a [DeviceMemoryOption],
    pub(super) policy: Option<PolicyName>,
    pub(super) granule: Option<GranuleSize>,
    pub(super) copy_threads: Option<u8>,
    pub(super) heat: HeatRequest,
    pub(super) api_socket: Option<&'a Path>,
}

/// Works out whether and how memory moves: not at all where nobody could ask
/// for it. Options that would change nothing are a line each in `warnings`.
pub(super) fn resolve(
    request: &Request<'_>,
    warnings: &mut Vec<String>,
) -> Result<Option<TiersConfig>, ConfigError> {
    let policy = request.policy.unwrap_or_default();
    let granule = request.granule.unwrap_or_default();
    let copy_threads = request.copy_threads.unwrap_or(1);
    if !(1..=MAX_COPY_THREADS).contains(&copy_threads) {
        let message = format!("{copy_threads} is not 1 to {MAX_COPY_THREADS}");
        return Err(ConfigError::new("--copy-threads", message));
    }
    request.api_socket.map_or(Ok(()), check_socket_path)?;
    if matches!(request.memory.backing, Backing::Dax(_)) {
        let message = format!(
            "backing={} is memory of a device region: give --memory another",
            request.memory.backing
        );
        return Err(ConfigError::new("--memory", message));
    }
    let device = |backing: &Backing| matches!(backing, Backing::Dax(_));
    let dax = request.regions.iter().map(|region| region.backing).find(device);
    let heat = heat::resolve(request.heat, policy, dax, warnings)?;
    for (index, region) in request.regions.iter().enumerate() {
        check_region(region, granule).map_err(|message| refuse_region(request, index, message))?;
    }
    let pools = request.regions.iter().any(|region| region.pool.is_some());
    if !pools && request.api_socket.is_none() && policy == PolicyName::Static {
        warn_unused(request, warnings);
        return Ok(None);
    }
    if !pools && policy != PolicyName::Static {
        warnings.push(format!(
            "--policy: {policy} places nothing, because no --device-memory has a pool="
        ));
    }
    if request.regions.len() > MAX_REGIONS {
        let message = format!(
            "{} regions are too many for memory that moves: at most {MAX_REGIONS}",
            request.regions.len()
        );
        return Err(ConfigError::new("--device-memory", message));
    }
    let engine = choose_engine(request)?;
    for (index, region) in request.regions.iter().enumerate() {
        check_engine(request, region).map_err(|message| refuse_region(request, index, message))?;
    }
    check_granule(request, granule)?;
    if policy == PolicyName::Heat && engine == EngineName::Node {
        warnings.push(
            "--policy: heat sees writes only with engine=node: it promotes what is written, and \
             demotes nothing; engine=move sees reads too"
                .to_owned(),
        );
    }
    let engine_named = request.regions.iter().any(|region| region.engine.is_some());
    Ok(Some(TiersConfig { granule, policy, engine, engine_named, copy_threads, heat }))
}

fn refuse_region(request: &Request<'_>, index: usize, message: String) -> ConfigError {
    match request.regions.len() {
        1 => ConfigError::new("--device-memory", message),
        _ => ConfigError::new("--device-memory", format!("region {index}: {message}")),
    }
}

fn warn_unused(request: &Request<'_>, warnings: &mut Vec<String>) {
    let given = [
        ("--granule", request.granule.is_some()),
        ("--copy-threads", request.copy_threads.is_some()),
    ];
    for (option, _) in given.into_iter().filter(|(_, given)| *given) {
        warnings.push(format!(
            "{option} changes nothing, because no memory moves: add pool= to a --device-memory, \
             or --api-socket"
        ));
    }
}

fn check_socket_path(path: &Path) -> Result<(), ConfigError> {
    let bytes = path.as_os_str().as_encoded_bytes();
    let message = if bytes.is_empty() {
        "\"\" is no path: give the name of a socket that is to be made".to_owned()
    } else if bytes.contains(&0) {
        format!("{:?} has a NUL in it, which no path has", path.display())
    } else if bytes.len() > MAX_SOCKET_PATH {
        format!(
            "{}: {} bytes are too long for a socket: at most {MAX_SOCKET_PATH}",
            path.display(),
            bytes.len()
        )
    } else {
        return Ok(());
    };
    Err(ConfigError::new("--api-socket", message))
}

/// What a region must be by itself.
fn check_region(region: &DeviceMemoryOption, granule: GranuleSize) -> Result<(), String> {
    if let Some(engine) = region.engine
        && engine != engine_of(region.backing)
        && !(engine == EngineName::Node && matches!(region.backing, Backing::Node(_)))
    {
        return Err(format!(
            "engine={engine} does not move backing={}: give backing={}, or leave engine= out",
            region.backing,
            backings(engine)
        ));
    }
    let Some(pool) = region.pool.map(|pool| pool.0) else { return Ok(()) };
    let size = display_size(pool);
    if pool < granule.bytes() {
        return Err(format!("pool={size} is less than one granule of {granule}: give it more"));
    }
    if !pool.is_multiple_of(granule.bytes()) {
        return Err(format!("pool={size} is not whole granules: give a multiple of {granule}"));
    }
    if pool / granule.bytes() > u64::from(u32::MAX) {
        return Err(format!(
            "pool={size} is more than 2^32 granules of {granule}: give less, or a larger --granule"
        ));
    }
    if region.size.0 > 0 {
        return Ok(());
    }
    // Without a window the guest does not see the region.
    let seen = match (region.addr, region.node) {
        (Some(addr), _) => format!("addr={:#x}", addr.0),
        (None, Some(node)) => format!("node={node}"),
        (None, None) => return Ok(()),
    };
    Err(format!("{seen} is of a window, and size=0 is none: leave it out, or give a size="))
}

/// Granules move between a region and RAM only if one engine moves both.
fn check_engine(request: &Request<'_>, region: &DeviceMemoryOption) -> Result<(), String> {
    if !moves(request, region) {
        return Ok(());
    }
    let (ram, own) = (request.memory.backing, region.backing);
    if engine_of(ram) == engine_of(own) {
        return Ok(());
    }
    let engine = engine_of(own);
    let why = match region.engine {
        Some(_) => format!("engine={engine}"),
        None => format!("backing={own}"),
    };
    Err(format!(
        "{why} moves nothing from and to RAM of backing={ram}: give --memory {},backing={}, \
         or this region backing={}",
        request.memory.size,
        backings(engine),
        backings(engine_of(ram))
    ))
}

/// hugetlb memory and /dev/dax move by their own page size only.
fn check_granule(request: &Request<'_>, granule: GranuleSize) -> Result<(), ConfigError> {
    if granule == GranuleSize::M2 {
        return Ok(());
    }
    let whole = |backing: &Backing| backing.is_hugetlb() || matches!(backing, Backing::Dax(_));
    let regions = request.regions.iter().filter(|region| moves(request, region));
    let (option, kind) = if whole(&request.memory.backing) {
        ("--memory", request.memory.backing)
    } else if let Some(backing) = regions.map(|region| region.backing).find(whole) {
        ("--device-memory", backing)
    } else {
        return Ok(());
    };
    let message = format!("{granule}: backing={kind} ({option}) cannot be split: use --granule 2M");
    Err(ConfigError::new("--granule", message))
}

/// Whether this region is among the tiers of the machine, also if it is
/// `generic` and its granules stay: its frames are counted and told of.
fn moves(request: &Request<'_>, region: &DeviceMemoryOption) -> bool {
    region.pool.is_some() || request.api_socket.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::keyvalue::KeyValues;
    use crate::config::units::Size;

    struct Machine {
        memory: &'static str,
        regions: &'static [&'static str],
        granule: GranuleSize,
        policy: PolicyName,
        socket: bool,
    }

    impl Default for Machine {
        fn default() -> Self {
            let (granule, policy) = (GranuleSize::M2, PolicyName::Static);
            Self { memory: "512M", regions: &[], granule, policy, socket: false }
        }
    }

    impl Machine {
        fn resolve(&self) -> Result<(Option<TiersConfig>, Vec<String>), String> {
            let memory: KeyValues<MemoryOption> = self.memory.parse().unwrap();
            let regions: Vec<DeviceMemoryOption> = self
                .regions
                .iter()
                .map(|text| text.parse::<KeyValues<_>>().map(|region| region.0).unwrap())
                .collect();
            let mut warnings = Vec::new();
            let request = Request {
                memory: &memory.0,
                regions: &regions,
                policy: Some(self.policy),
                granule: Some(self.granule),
                copy_threads: None,
                heat: HeatRequest::default(),
                api_socket: self.socket.then(|| Path::new("vm.sock")),
            };
            let tiers = resolve(&request, &mut warnings).map_err(|error| error.to_string())?;
            Ok((tiers, warnings))
        }
    }

    #[test]
    fn nothing_moves_where_nobody_can_ask() {
        let regions = &["size=128M"];
        let machine = Machine { regions, ..Machine::default() };
        let (tiers, warnings) = machine.resolve().unwrap();
        assert_eq!(tiers, None);
        assert!(warnings[0].starts_with("--granule changes nothing"), "{warnings:?}");
        for machine in [
            Machine { regions: &["size=0,pool=2M"], ..Machine::default() },
            Machine { socket: true, regions, ..Machine::default() },
            Machine { policy: PolicyName::OnFault, regions, ..Machine::default() },
        ] {
            assert!(machine.resolve().unwrap().0.is_some());
        }
    }

    #[test]
    fn the_engine_is_the_one_for_the_memory() {
        for (memory, region, engine) in [
            ("512M", "size=0,pool=2M,engine=move", EngineName::Move),
            ("512M,backing=memfd", "size=0,pool=2M,backing=memfd", EngineName::Remap),
            (
                "512M,backing=memfd",
                "size=0,pool=2M,backing=hugetlb,engine=remap",
                EngineName::Remap,
            ),
        ] {
            let memory: KeyValues<MemoryOption> = memory.parse().unwrap();
            let region: KeyValues<DeviceMemoryOption> = region.parse().unwrap();
            let request = Request {
                heat: HeatRequest::default(),
                memory: &memory.0,
                regions: &[region.0],
                policy: None,
                granule: None,
                copy_threads: Some(16),
                api_socket: None,
            };
            let tiers = resolve(&request, &mut Vec::new()).unwrap().unwrap();
            assert_eq!((tiers.engine, tiers.copy_threads), (engine, 16));
        }
    }

    #[test]
    fn nodes_are_moved_between_by_move_pages_where_it_can() {
        let engine = |region: &'static str, machine: Machine| {
            let regions = &*Box::leak(Box::new([region]));
            Machine { regions, ..machine }.resolve().unwrap().0.unwrap().engine
        };
        const NODE: &str = "size=0,pool=2M,backing=node:1";
        let plain = Machine::default;
        assert_eq!(engine(NODE, plain()), EngineName::Node);
        assert_eq!(engine("size=0,pool=2M,backing=node:1,engine=move", plain()), EngineName::Move);
        assert_eq!(engine("size=0,pool=2M,backing=node:1,kind=private", plain()), EngineName::Move);
        let (granule, policy) = (GranuleSize::K64, PolicyName::FirstTouch);
        assert_eq!(engine(NODE, Machine { granule, ..plain() }), EngineName::Move);
        assert_eq!(engine(NODE, Machine { policy, ..plain() }), EngineName::Move);
        let policy = PolicyName::Heat;
        assert_eq!(engine(NODE, Machine { policy, ..plain() }), EngineName::Move);
        let regions = &[NODE, "size=0,pool=2M"];
        let mixed = Machine { regions, ..plain() }.resolve().unwrap().0.unwrap();
        assert_eq!(mixed.engine, EngineName::Move);
    }

    #[test]
    fn a_dax_device_goes_with_files_and_whole_huge_pages() {
        let regions = &["size=2M,pool=2M,backing=dax:/dev/dax0.0"];
        let machine = || Machine { memory: "512M,backing=memfd", regions, ..Machine::default() };
        assert_eq!(machine().resolve().unwrap().0.unwrap().engine, EngineName::Remap);
        let message = Machine { granule: GranuleSize::K4, ..machine() }.resolve().unwrap_err();
        assert!(message.contains("backing=dax:/dev/dax0.0 (--device-memory)"), "{message}");
        let message = Machine { memory: "512M", ..machine() }.resolve().unwrap_err();
        assert!(message.contains("--memory 512M,backing=memfd or hugetlb"), "{message}");
        let message = Machine { memory: "512M,backing=dax:/dev/dax0.0", ..machine() };
        let message = message.resolve().unwrap_err();
        assert!(message.starts_with("--memory: backing=dax"), "{message}");
    }

    #[test]
    fn mistakes_say_what_would_do() {
        let refused = |machine: Machine, parts: &[&str]| {
            let message = machine.resolve().unwrap_err();
            for part in parts {
                assert!(message.contains(part), "no {part:?} in {message:?}");
            }
        };
        let region = |regions| Machine { regions, ..Machine::default() };
        refused(region(&["size=0,pool=1M"]), &["--device-memory: pool=1M", "one granule of 2M"]);
        refused(region(&["size=0,pool=0"]), &["pool=0 is less"]);
        refused(region(&["size=2M", "size=0,pool=3M"]), &["region 1: pool=3M", "multiple of 2M"]);
        refused(region(&["size=0,pool=2M,node=1"]), &["node=1 is of a window", "size="]);
        refused(region(&["size=0,pool=2M,addr=4G"]), &["addr=0x100000000 is of a window"]);
        refused(region(&["size=2M,engine=remap"]), &["engine=remap", "backing=memfd or hugetlb"]);
        refused(
            region(&["size=2M,engine=move,backing=memfd"]),
            &["engine=move", "backing=memfd", "backing=anon"],
        );
        refused(
            region(&["size=0,pool=2M,backing=memfd"]),
            &["backing=memfd moves nothing", "--memory 512M,backing=memfd or hugetlb"],
        );
        refused(
            Machine { memory: "1G,backing=memfd", ..region(&["size=0,pool=2M,engine=move"]) },
            &["engine=move moves nothing", "--memory 1G,backing=anon"],
        );
        refused(
            Machine { socket: true, ..region(&["size=2M,backing=hugetlb"]) },
            &["backing=hugetlb moves nothing"],
        );
        let small = Machine { granule: GranuleSize::K64, ..Machine::default() };
        refused(
            Machine { memory: "1G,backing=hugetlb", socket: true, ..small },
            &["--granule: 64K", "(--memory) cannot be split: use --granule 2M"],
        );
        let small = Machine { granule: GranuleSize::K4, ..Machine::default() };
        let regions = &["size=0,pool=2M,backing=hugetlb"];
        refused(
            Machine { memory: "1G,backing=memfd", regions, ..small },
            &["--granule: 4K", "(--device-memory)"],
        );
        let small = Machine { granule: GranuleSize::K4, ..Machine::default() };
        refused(Machine { regions: &["size=0,pool=16T"], ..small }, &["more than 2^32 granules"]);
        refused(Machine { socket: true, ..region(&["size=2M"; 256]) }, &["256", "at most 255"]);
    }

    #[test]
    fn a_region_of_a_machine_without_tiers_may_be_of_any_memory() {
        let regions = &["size=2M,backing=memfd,kind=generic"];
        assert!(Machine { regions, ..Machine::default() }.resolve().is_ok());
        let machine = Machine { socket: true, regions, ..Machine::default() };
        let message = machine.resolve().unwrap_err().to_string();
        assert!(
            message.contains("--device-memory") && message.contains("backing=memfd"),
            "{message}"
        );
    }

    #[test]
    fn sockets_have_a_path_that_the_kernel_takes() {
        for (path, part) in [
            ("x".repeat(108), "at most 107"),
            (String::new(), "no path"),
            ("a\0b".to_owned(), "NUL"),
        ] {
            let message = check_socket_path(Path::new(&path)).unwrap_err().to_string();
            assert!(message.starts_with("--api-socket: ") && message.contains(part), "{message}");
        }
        assert!(check_socket_path(Path::new(&"x".repeat(107))).is_ok());
    }

    #[test]
    fn copy_threads_are_1_to_16() {
        let memory = MemoryOption {
            size: Size(1 << 30),
            prefault: crate::config::units::Switch(false),
            backing: Backing::Anon,
        };
        for threads in [0, 17] {
            let request = Request {
                memory: &memory,
                regions: &[],
                policy: None,
                granule: None,
                copy_threads: Some(threads),
                heat: HeatRequest::default(),
                api_socket: None,
            };
            let message = resolve(&request, &mut Vec::new()).unwrap_err().to_string();
            assert_eq!(message, format!("--copy-threads: {threads} is not 1 to 16"));
        }
    }
}
