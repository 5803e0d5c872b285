//! `neap bench`: measures this machine, each figure beside what it is
//! compared with.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};

use super::place;
use crate::bench::boot::{self, BootImages};
use crate::bench::dax;
use crate::bench::heat;
use crate::bench::moving::subject as moving;
use crate::bench::node;
use crate::bench::plot::{Panel, Series, svg};
use crate::bench::rows::Rows;
use crate::bench::start::{self, Sides};
use crate::bench::{BenchError, LeftOut, Machine, Results};
use crate::failure::{self, Failure, Outcome, SUCCESS, tell};
use crate::images;

/// Measures this machine, each figure beside what it is compared with
///
/// The exit status is 0 whether or not a target is reached.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  neap bench start
  neap bench start --runs 51 --plot start.svg
  neap bench boot --kernel bzimage --json
  neap bench migrate --only 2m_thp --plot migrate.svg
  neap bench fault --json
  neap bench heat
  neap bench heat --only sampling
  neap bench heat --trace touches.bin
  neap lab --host-tiers -- bench node
  neap lab --host-tiers -- bench dax")]
pub struct BenchArgs {
    #[command(subcommand)]
    subject: Subject,
}

#[derive(Subcommand, Debug)]
enum Subject {
    /// Process start to first guest instruction and to power-off, CPU time and memory, beside the
    /// bare sequence of KVM calls
    Start {
        /// Timed runs of each side
        #[arg(long, value_name = "N", default_value_t = 21)]
        runs: usize,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Boot of a Linux guest to its first process, beside QEMU's microvm
    Boot {
        /// Timed runs of each side
        #[arg(long, value_name = "N", default_value_t = 5)]
        runs: usize,
        /// Form of the kernel
        #[arg(long, value_enum, default_value = "vmlinux")]
        kernel: KernelForm,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Moving memory under a bare guest: beside memcpy, beside a program of bare system calls, and
    /// what the guest has of it
    ///
    /// Takes up to 8 times the last-level cache, four times over, of memory, and for hugetlb pages
    /// sets vm.nr_hugepages while it runs. Figures that the machine cannot give are left out, with
    /// the reason.
    Migrate(MovingArgs),
    /// A vCPU's touch of a granule in a `private` region until it goes on, beside a bare fault and
    /// a copy
    Fault(MovingArgs),
    /// A guest's passes over memory in a device region, beside memory that never moved
    Steady(MovingArgs),
    /// What the policy `heat` makes of traces of touches, beside the optimum in hindsight, plain LRU
    /// and a rule like TPP's; and what its sampling costs a guest
    Heat {
        /// Seeds of traces
        #[arg(long, value_name = "N", default_value_t = 3)]
        runs: usize,
        /// Only the figures with this in their names, and those that are measured along with them
        #[arg(long, value_name = "TEXT")]
        only: Option<String>,
        /// Replay the trace in this file instead: touches (--write-traces), or what policy heat saw
        /// of a guest (neap run --heat-trace)
        #[arg(long, value_name = "FILE", conflicts_with = "only")]
        trace: Option<PathBuf>,
        /// Write the traces of the first seed into this folder, and measure nothing
        #[arg(long, value_name = "FOLDER", conflicts_with_all = ["trace", "only"])]
        write_traces: Option<PathBuf>,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// A device region of 1T: how soon it is there, what it costs, and what a granule costs
    Pool(MovingArgs),
    /// Moving memory between two NUMA nodes of this machine by each engine that can, beside a
    /// program of bare move_pages(2)
    Node {
        /// Turns in which all three are measured
        #[arg(long, value_name = "N", default_value_t = 21)]
        runs: usize,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// How long vCPUs are parked while memory leaves a /dev/dax, beside the copy of it
    ///
    /// Overwrites what is in the device.
    Dax {
        /// Turns, each with one vCPU and with two
        #[arg(long, value_name = "N", default_value_t = 21)]
        runs: usize,
        /// Which device
        #[arg(long, value_name = "PATH", default_value = "/dev/dax0.0")]
        device: String,
        /// Measure a file of huge pages that stands in for a device
        #[arg(long, conflicts_with = "device")]
        stand_in: bool,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// The API socket of a machine with a region of 1T, while its memory moves all the time: how soon
    /// it answers, and what a scrape of the metrics costs the moves
    Api(MovingArgs),
}

#[derive(Args, Debug)]
struct MovingArgs {
    /// Turns in which both sides are measured
    #[arg(long, value_name = "N", default_value_t = 21)]
    runs: usize,
    /// Only the figures with this in their names
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Args, Debug)]
struct OutputArgs {
    /// Print the machine and the figures as JSON
    #[arg(long)]
    json: bool,
    /// Draw the samples into an SVG file
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum KernelForm {
    /// ELF file, entered by PVH
    Vmlinux,
    /// Compressed, entered by the Linux boot protocol
    Bzimage,
}

/// Carries the command out.
///
/// # Errors
/// A mistake in the options, missing images, or a run that failed.
pub fn execute(args: BenchArgs) -> Outcome {
    match args.subject {
        Subject::Start { runs, output } => bench_start(runs, &output),
        Subject::Boot { runs, kernel, output } => bench_boot(runs, kernel, &output),
        Subject::Migrate(args) => bench_moving(moving::Subject::Migrate, &args),
        Subject::Fault(args) => bench_moving(moving::Subject::Fault, &args),
        Subject::Steady(args) => bench_moving(moving::Subject::Steady, &args),
        Subject::Heat { trace: Some(trace), output, .. } => replay_trace(&trace, &output),
        Subject::Heat { write_traces: Some(folder), .. } => {
            heat::write_traces(&folder).map_err(failure)?;
            Ok(SUCCESS)
        }
        Subject::Heat { runs, only, output, .. } => bench_heat(runs, only.as_deref(), &output),
        Subject::Pool(args) => bench_moving(moving::Subject::Pool, &args),
        Subject::Node { runs, output } => {
            let mut say = |what: &str| tell(format_args!("measuring {what}"));
            let rows = node::measure(runs, &mut say).map_err(failure)?;
            show_rows(&rows, &output, |machine| {
                format!(
                    "{}{}",
                    heading(machine, runs),
                    rows.text("memory that moves between nodes")
                )
            })
        }
        Subject::Dax { runs, device, stand_in, output } => {
            let mut say = |what: &str| tell(format_args!("measuring {what}"));
            let rows =
                dax::measure((!stand_in).then_some(&device), runs, &mut say).map_err(failure)?;
            show_rows(&rows, &output, |machine| {
                format!("{}{}", heading(machine, runs), rows.text("memory that leaves a device"))
            })
        }
        Subject::Api(args) => bench_moving(moving::Subject::Api, &args),
    }
}

fn bench_moving(subject: moving::Subject, args: &MovingArgs) -> Outcome {
    let MovingArgs { runs, only, output } = args;
    let mut say = |names: &str| tell(format_args!("measuring {names}"));
    let rows = moving::measure(subject, *runs, only.as_deref(), &mut say).map_err(failure)?;
    show_rows(&rows, output, |machine| {
        format!("{}{}", heading(machine, *runs), rows.text("memory that moves"))
    })
}

/// Shows what was measured: plot, JSON, or what `text` says of it.
fn show_rows(rows: &Rows, output: &OutputArgs, text: impl FnOnce(&Machine) -> String) -> Outcome {
    for LeftOut { name, why } in &rows.left_out {
        tell(format_args!("left out: {name}: {why}"));
    }
    if let Some(path) = &output.plot {
        write_file(path, rows.plot())?;
    }
    let results = Results {
        machine: Machine::this(),
        figures: rows.figures(),
        left_out: rows.left_out.clone(),
    };
    print(output, &results, || text(&results.machine))
}

fn bench_heat(runs: usize, only: Option<&str>, output: &OutputArgs) -> Outcome {
    let found = heat::measure(runs, only, &mut |what| tell(format_args!("measuring {what}")));
    let heat::Heat { rows, compared } = found.map_err(failure)?;
    show_rows(&rows, output, |machine| {
        let tables: String =
            compared.iter().map(|(name, compared)| heat::table(name, compared)).collect();
        let line = machine.line();
        format!("{line}\nmedians of {runs} seeds\n{}\n{tables}", rows.text("heat"))
    })
}

fn replay_trace(path: &Path, output: &OutputArgs) -> Outcome {
    let compared = heat::recorded(path).map_err(failure)?;
    if output.json || output.plot.is_some() {
        return Err(Failure::usage("--trace prints a table: leave --json and --plot out"));
    }
    failure::print(heat::table(&path.display().to_string(), &compared))?;
    Ok(SUCCESS)
}

fn bench_start(runs: usize, output: &OutputArgs) -> Outcome {
    let folder = tempfile::tempdir()
        .map_err(|error| Failure::usage(format_args!("cannot make a temporary folder: {error}")))?;
    let sides = Sides::new(&place::this_program()?, folder.path()).map_err(failure)?;
    let start = start::measure(&sides, runs).map_err(failure)?;
    if let Some(path) = &output.plot {
        let panel = |title, ours, floor| Panel {
            title,
            series: vec![
                Series { name: "neap", samples: ours },
                Series { name: "floor", samples: floor },
            ],
        };
        let (ours, floor) = (&start.ours, &start.floor);
        write_plot(
            path,
            &[
                panel("first guest instruction (ms)", &ours.first_ms, &floor.first_ms),
                panel("whole process (ms)", &ours.whole_ms, &floor.whole_ms),
                panel("CPU time (ms)", &ours.cpu_ms, &floor.cpu_ms),
            ],
        )?;
    }
    let results =
        Results { machine: Machine::this(), figures: start.figures.clone(), left_out: vec![] };
    print(output, &results, || format!("{}{}", heading(&results.machine, runs), start.table()))
}

fn bench_boot(runs: usize, kernel: KernelForm, output: &OutputArgs) -> Outcome {
    let images = images::locate().map_err(Failure::usage)?;
    let neap = place::this_program()?;
    if place::needs_lab() {
        tell("Linux guests do not run at full speed here; measuring in the lab");
        return place::in_lab(env::args_os().skip(1).collect(), None);
    }
    let (kernel, name) = match kernel {
        KernelForm::Vmlinux => (images.vmlinux, "boot.vs_qemu_microvm"),
        KernelForm::Bzimage => (images.bzimage, "boot.vs_qemu_microvm.bzimage"),
    };
    let images = BootImages { kernel, initramfs: images.initramfs };
    let boot = boot::measure(&neap, Path::new("qemu-system-x86_64"), &images, name, runs)
        .map_err(failure)?;
    if let Some(path) = &output.plot {
        let series = vec![
            Series { name: "neap", samples: &boot.ours_ms },
            Series { name: "QEMU microvm", samples: &boot.qemu_ms },
        ];
        write_plot(path, &[Panel { title: "boot to init (ms)", series }])?;
    }
    let results =
        Results { machine: Machine::this(), figures: vec![boot.figure.clone()], left_out: vec![] };
    print(output, &results, || {
        let [ours, theirs] = &boot.commands;
        format!(
            "{}{}{}{ours}\n{theirs}\n",
            heading(&results.machine, runs),
            boot.table(),
            boot.explanation()
        )
    })
}

fn failure(error: BenchError) -> Failure {
    match error {
        BenchError::NoRuns(_) | BenchError::File { .. } | BenchError::Unable(_) => {
            Failure::usage(error)
        }
        BenchError::Child(_)
        | BenchError::Unexpected(_)
        | BenchError::Guest(_)
        | BenchError::System { .. }
        | BenchError::Interrupted => Failure::vm(error),
    }
}

fn heading(machine: &Machine, runs: usize) -> String {
    format!("{}\nmedians of {runs} runs, both sides in turn\n", machine.line())
}

fn write_plot(path: &Path, panels: &[Panel<'_>]) -> Result<(), Failure> {
    write_file(path, svg(panels))
}

fn write_file(path: &Path, text: String) -> Result<(), Failure> {
    fs::write(path, text)
        .map_err(|error| Failure::usage(format_args!("--plot {}: {error}", path.display())))
}

fn print(output: &OutputArgs, results: &Results, text: impl FnOnce() -> String) -> Outcome {
    let text = if output.json {
        results.json().map_err(|error| Failure::vm(format_args!("--json: {error}")))?
    } else {
        text()
    };
    failure::print(text)?;
    Ok(SUCCESS)
}
