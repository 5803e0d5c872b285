//! `vm.toml`: the options of `neap run` in a file.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::{ConfigError, VmOptions};

/// Longest file that is read, in bytes; anything longer is no configuration
/// (and `/dev/zero` never ends).
const MAX_LENGTH: u64 = 1 << 20;

/// Reads the options in `path`.
///
/// # Errors
/// [`ConfigError`] for `--config` with the path, the line and what is wrong.
pub fn load(path: &Path) -> Result<VmOptions, ConfigError> {
    let error =
        |message: String| ConfigError::new("--config", format!("{}: {message}", path.display()));
    let file = File::open(path).map_err(|e| error(e.to_string()))?;
    let mut text = String::new();
    let length =
        file.take(MAX_LENGTH + 1).read_to_string(&mut text).map_err(|e| error(e.to_string()))?;
    if length as u64 > MAX_LENGTH {
        return Err(error(format!("longer than {MAX_LENGTH} bytes, so no configuration")));
    }
    toml::from_str(&text).map_err(|e| {
        let line = e.span().map_or(0, |span| text[..span.start].matches('\n').count() + 1);
        error(format!("line {line}: {}", e.message().replace('`', "\"").replace('\n', " ")))
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use neap_memory::addr::GIB;
    use neap_memory::granule::{GranuleSize, Kind};
    use neap_memory::policy::PolicyName;

    use super::*;
    use crate::config::EngineName;

    fn load_text(text: &str) -> Result<VmOptions, ConfigError> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        load(file.path())
    }

    #[test]
    fn every_option_can_stand_in_a_file() {
        let options = load_text(
            "kernel = \"vmlinux\"\ninitrd = \"initrd\"\ncmdline = \"quiet\"\ncpus = 2\n\
             memory = { size = \"2G\", prefault = true }\nefi = true\n\
             policy = \"first-touch\"\ngranule = \"64K\"\ncopy-threads = 2\n\
             heat-budget = \"500M\"\nheat-period = 50\nheat-cost = 0.5\nheat-trace = \"seen.trace\"\n\
             api-socket = \"vm.sock\"\n\
             numa-distance = [\"0:1=30\"]\nhmat = [\"0:1,read-latency=300,bandwidth=25G\"]\n\
             [[numa]]\nnode = 0\ncpus = \"0-1\"\nmemory = \"2G\"\n\
             [[device-memory]]\nsize = \"512M\"\nnode = 1\naddr = 0x200000000\n\
             pool = \"1G\"\nkind = \"private\"\nengine = \"move\"\n",
        )
        .unwrap();
        assert_eq!(options.cpus, Some(2));
        assert!(options.memory.unwrap().0.prefault.0);
        assert_eq!(options.numa[0].0.cpus.0, [0, 1]);
        assert_eq!(options.device_memory[0].0.addr.unwrap().0, 0x2_0000_0000);
        assert_eq!(options.numa_distance[0].distance, 30);
        assert_eq!(options.policy, Some(PolicyName::FirstTouch));
        assert_eq!(options.granule, Some(GranuleSize::K64));
        assert_eq!(options.copy_threads, Some(2));
        assert_eq!(options.heat_budget.map(|budget| budget.0), Some(500 << 20));
        assert_eq!(options.heat_period, Some(50));
        assert_eq!(options.heat_cost.map(|cost| cost.0), Some(50));
        assert_eq!(options.api_socket.unwrap().to_str(), Some("vm.sock"));
        let region = &options.device_memory[0].0;
        assert_eq!((region.pool.unwrap().0, region.kind), (GIB, Kind::Private));
        assert_eq!(region.engine, Some(EngineName::Move));
    }

    #[test]
    fn unknown_keys_name_their_line() {
        let message = load_text("cpus = 1\ncolour = 3\n").unwrap_err().to_string();
        assert!(message.contains("line 2") && message.contains("\"colour\""), "{message}");
        let message = load_text("[[device-memory]]\nsize = \"1G\"\npond = 1\n").unwrap_err();
        assert!(message.to_string().contains("\"pond\""), "{message}");
    }

    #[test]
    fn a_file_that_never_ends_is_refused() {
        assert!(load(Path::new("/dev/zero")).unwrap_err().to_string().contains("longer than"));
    }
}
