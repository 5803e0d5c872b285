//! The binary `neap`; see `neap --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    neap_vmm::cli::main()
}
