//! `neap setup`: everything that guests and the lab need, built or installed
//! once.

use clap::Args;

use crate::failure::{Failure, Outcome, SUCCESS, print};
use crate::images;

/// Installs packages and builds the guest images, where missing
///
/// Images are kept in $NEAP_CACHE, else in $XDG_CACHE_HOME/neap, else in
/// ~/.cache/neap. The first run builds a kernel, which takes some minutes;
/// installing packages takes root.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  neap setup
  neap setup --check
  NEAP_CACHE=/var/cache/neap neap setup")]
pub struct SetupArgs {
    /// Only say what is missing; exit status 1 if anything is
    #[arg(long)]
    check: bool,
}

/// Carries the command out.
pub fn execute(args: SetupArgs) -> Outcome {
    if args.check {
        let missing = images::missing()?;
        return if missing.is_empty() {
            print("nothing is missing\n")?;
            Ok(SUCCESS)
        } else {
            Err(Failure::usage(missing.join("; ")))
        };
    }
    let images = images::ensure()?;
    let mut text = format!("guest kernel   Linux {}\n", images.kernel_version);
    for (name, path) in [
        ("bzImage", &images.bzimage),
        ("vmlinux", &images.vmlinux),
        ("configuration", &images.kernel_config),
        ("modules", &images.modules),
        ("hmm-tests", &images.hmm_tests),
        ("initramfs", &images.initramfs),
        ("lab initramfs", &images.lab_initramfs),
    ] {
        text += &format!("{name:<14} {}\n", path.display());
    }
    print(text)?;
    Ok(SUCCESS)
}
