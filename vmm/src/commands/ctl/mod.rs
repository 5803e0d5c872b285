//! `neap ctl`: looks at a machine that runs, and moves its memory.

mod accounts;
mod bar;
mod jobs;
mod plug;
mod show;

use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::{Args, Subcommand};
use neap_memory::Backing;
use neap_memory::policy::PolicyName;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::config::units::{Address, Size};
use crate::control::api::{
    self, BackingWord, ErrorKind, Hex, Migrated, PolicyWord, Request, Residency, SelectFlag,
    Status, To,
};
use crate::control::client::{Client, ClientError, Events};
use crate::failure::{Failure, Outcome, SUCCESS, print};
use bar::Bar;

/// Looks at a machine that runs, and moves its memory
///
/// The machine is one that was started with `neap run --api-socket PATH`.
/// Exit status: 0 done, 1 a mistake in the options or refused by the machine (also a migration in
/// which nothing moved although something should have), 2 the machine cannot be reached or failed,
/// or --verify found that the kernel says otherwise.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  neap ctl --socket vm.sock status
  neap ctl --socket vm.sock migrate --to region:0 --range 0x40000000+256M
  neap ctl --socket vm.sock migrate --to home --from-region 0 --limit 16
  neap ctl --socket vm.sock residency --verify
  neap ctl --socket vm.sock status --verify
  neap ctl --socket vm.sock evacuate --region 0 --json
  neap ctl --socket vm.sock migrate --to region:0 --detach
  neap ctl --socket vm.sock cancel 0
  neap ctl --socket vm.sock policy on-fault")]
pub struct CtlArgs {
    /// The machine's socket, as given to `neap run --api-socket`
    #[arg(long, value_name = "PATH", global = true)]
    socket: Option<PathBuf>,

    /// Print the answer as JSON
    #[arg(long, global = true)]
    json: bool,

    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand, Debug)]
enum Action {
    /// How the machine and its memory are
    Status {
        /// Ask the kernel how much memory each tier has, too, and tell where it says otherwise
        #[arg(long)]
        verify: bool,
    },
    /// Where guest memory is: neighbours that are alike in one line
    Residency {
        /// Ask the kernel too, and tell where it says otherwise
        #[arg(long)]
        verify: bool,
    },
    /// Move guest memory
    Migrate(MigrateArgs),
    /// Bring home all guest memory that is in a device region
    Evacuate {
        /// The region's number: the first --device-memory is 0
        #[arg(long, value_name = "N")]
        region: u8,
        /// Do not wait for the end: print the job that goes on
        #[arg(long)]
        detach: bool,
    },
    /// Stop the vCPUs
    Pause,
    /// Let the vCPUs go on
    Resume,
    /// Hold guest memory where it is, as a device does that accesses it by itself
    Pin {
        /// First address and size
        #[arg(long, value_name = "GPA+SIZE")]
        range: RangeArg,
    },
    /// Let go of what pin holds
    Unpin {
        /// The number that pin printed
        pin: u64,
    },
    /// Empty a device region, take it away, and give its host memory back
    Unplug {
        /// The region's number: the first --device-memory is 0
        #[arg(long, value_name = "N")]
        region: u8,
    },
    /// Give a device region back that unplug took away, or another in its place
    Plug {
        /// The region's number: the first --device-memory is 0
        #[arg(long, value_name = "N")]
        region: u8,
        /// Bytes of its pool from now on, at the most what it was started with
        #[arg(long, value_name = "SIZE")]
        pool: Option<Size>,
        /// Host memory behind it from now on: anon, node:N
        #[arg(long, value_name = "KIND")]
        backing: Option<Backing>,
    },
    /// Make the host's page behind a page of guest memory fail, for good, to try
    /// what follows (needs CAP_SYS_ADMIN and a kernel with CONFIG_MEMORY_FAILURE)
    FailPage {
        /// Guest-physical address, in the page
        #[arg(value_name = "GPA")]
        address: Address,
    },
    /// Migrations that are at work, and the last that ended
    Jobs,
    /// How a job is, and what came of it
    Job {
        /// Its number
        job: u64,
    },
    /// End a job between two granules
    Cancel {
        /// Its number
        job: u64,
    },
    /// What moves by itself; with a name, have that policy decide from now on
    Policy {
        /// The policy from now on
        name: Option<PolicyName>,
    },
    /// What happens, as it happens, until the machine is over
    Events,
    /// Everything that is counted, in the text format of Prometheus
    Metrics,
}

#[derive(Args, Debug)]
struct MigrateArgs {
    /// Where to: host memory, or a device region by number
    #[arg(long, value_name = "home|region:N")]
    to: ToArg,

    /// Guest memory: first address and size (repeatable) [default: all of it]
    #[arg(long, value_name = "GPA+SIZE")]
    range: Vec<RangeArg>,

    /// What may be moved, by where it is: system, device-private, device-public
    /// [default: all of them]
    #[arg(long, value_name = "PLACE,...", value_delimiter = ',')]
    select: Vec<SelectFlag>,

    /// Of what is in device regions, only that in this one
    #[arg(long, value_name = "N")]
    from_region: Option<u8>,

    /// Move so many granules at the most, the first ones by address
    #[arg(long, value_name = "N")]
    limit: Option<u64>,

    /// Do not wait for the end: print the job that goes on
    #[arg(long)]
    detach: bool,
}

/// `home` or `region:N`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ToArg(To);

impl FromStr for ToArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let region = text.strip_prefix("region:").and_then(|number| number.parse().ok());
        match (text, region) {
            ("home", _) => Ok(Self(To::Home)),
            (_, Some(region)) => Ok(Self(To::Pool(region))),
            _ => Err(format!("\"{text}\" is neither home nor region:N with N from 0 to 254")),
        }
    }
}

/// `GPA+SIZE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct RangeArg(api::Range);

impl FromStr for RangeArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (base, size) = text
            .split_once('+')
            .ok_or_else(|| format!("\"{text}\" is not GPA+SIZE, such as 0x40000000+64M"))?;
        let (base, size) = (base.parse::<Address>()?, size.parse::<Size>()?);
        Ok(Self(api::Range { base: Hex(base.0), size: size.0 }))
    }
}

/// Carries the command out.
///
/// # Errors
/// A mistake, a refusal, or a machine that cannot be reached.
pub fn execute(args: CtlArgs) -> Outcome {
    let socket = args.socket.ok_or_else(|| {
        Failure::usage("--socket: missing: give the path that neap run --api-socket made")
    })?;
    if matches!(args.action, Action::Events) {
        return events(&socket, args.json);
    }
    let client = Client::connect(&socket).map_err(|error| failure("--socket", error))?;
    let mut talk = Talk { client, json: args.json };
    match args.action {
        Action::Status { verify } => talk.status(verify),
        Action::Residency { verify } => talk.residency(verify),
        Action::Migrate(asked) => {
            let filtered = !asked.select.is_empty() || asked.from_region.is_some();
            let request = Request::Migrate(api::Migrate {
                ranges: asked.range.iter().map(|range| range.0).collect(),
                to: asked.to.0,
                select: (!asked.select.is_empty()).then_some(asked.select),
                from_pool: asked.from_region,
                limit: asked.limit,
                detach: asked.detach,
            });
            match asked.detach {
                true => talk.tell("migrate", &request, jobs::job),
                false => talk.migrate("migrate", &request, filtered),
            }
        }
        Action::Evacuate { region, detach } => {
            let request = Request::Evacuate(api::Evacuate { region, detach });
            match detach {
                true => talk.tell("evacuate", &request, jobs::job),
                false => talk.migrate("evacuate", &request, true),
            }
        }
        Action::Pause => talk.tell("pause", &Request::Pause {}, show::lifecycle),
        Action::Resume => talk.tell("resume", &Request::Resume {}, show::lifecycle),
        Action::Pin { range } => talk.tell("pin", &Request::Pin { range: range.0 }, show::pinned),
        Action::Unpin { pin } => talk.tell("unpin", &Request::Unpin { pin }, show::unpinned),
        Action::Unplug { region } => {
            talk.tell("unplug", &Request::Unplug { region }, plug::unplugged)
        }
        Action::Plug { region, pool, backing } => {
            let (pool, backing) = (pool.map(|pool| pool.0), backing.map(BackingWord));
            let request = Request::Plug(api::Plug { region, pool, backing });
            talk.tell("plug", &request, plug::plugged)
        }
        Action::FailPage { address } => {
            let request = Request::FailPage { address: Hex(address.0) };
            talk.tell("fail-page", &request, plug::page_failed)
        }
        Action::Jobs => talk.tell("jobs", &Request::Jobs {}, jobs::jobs),
        Action::Job { job } => talk.tell("job", &Request::Job { job }, jobs::job),
        Action::Cancel { job } => talk.tell("cancel", &Request::Cancel { job }, jobs::job),
        Action::Policy { name } => {
            let request = Request::Policy { set: name.map(PolicyWord) };
            talk.tell("policy", &request, jobs::policy)
        }
        Action::Metrics => talk.tell("metrics", &Request::Metrics {}, jobs::metrics),
        // Told already.
        Action::Events => Ok(SUCCESS),
    }
}

/// Prints events, each on a line, until there are no more.
fn events(socket: &Path, json: bool) -> Outcome {
    let mut events = Events::open(socket).map_err(|error| failure("--socket", error))?;
    while let Some(event) = events.next().map_err(|error| failure("events", error))? {
        if json {
            print(format_args!("{}\n", serde_json::to_string(&event).map_err(Failure::vm)?))?;
        } else {
            print(jobs::event(&event))?;
        }
    }
    Ok(SUCCESS)
}

/// A conversation with a machine.
struct Talk {
    client: Client,
    json: bool,
}

impl Talk {
    fn tell<A: DeserializeOwned + Serialize>(
        &mut self,
        name: &str,
        request: &Request,
        show: impl Fn(&A) -> String,
    ) -> Outcome {
        let answer = self.client.ask(request).map_err(|error| failure(name, error))?;
        self.print(&answer, show)?;
        Ok(SUCCESS)
    }

    fn print<A: Serialize>(&self, answer: &A, show: impl Fn(&A) -> String) -> Result<(), Failure> {
        if !self.json {
            return print(show(answer));
        }
        let text = serde_json::to_string_pretty(answer).map_err(Failure::vm)?;
        print(format_args!("{text}\n"))
    }

    fn status(&mut self, verify: bool) -> Outcome {
        let request = Request::Status { verify };
        let status: Status = self.client.ask(&request).map_err(|error| failure("status", error))?;
        self.print(&status, show::status)?;
        let accounts = status.tiers.as_ref().and_then(|tiers| tiers.accounts.as_ref());
        match accounts {
            Some(accounts) if !accounts.differences.is_empty() => {
                Err(Failure::vm("status: the kernel says otherwise"))
            }
            _ => Ok(SUCCESS),
        }
    }

    /// All of it, in as many answers as it takes; what moves meanwhile may be
    /// told twice or not at all.
    fn residency(&mut self, verify: bool) -> Outcome {
        let mut ask = |verify, from| {
            let request = Request::Residency { verify, from };
            self.client.ask::<Residency>(&request).map_err(|error| failure("residency", error))
        };
        let mut whole = ask(verify, Hex(0))?;
        while let Some(next) = whole.next {
            let more = ask(false, next)?;
            whole.runs.extend(more.runs);
            // One that does not go on would go on for ever.
            whole.next = more.next.filter(|after| *after > next);
        }
        self.print(&whole, show::residency)?;
        match whole.verified.map_or(0, |verified| verified.mismatches.len()) {
            0 => Ok(SUCCESS),
            _ => Err(Failure::vm("residency: memory is not where it should be")),
        }
    }

    fn migrate(&mut self, name: &str, request: &Request, filtered: bool) -> Outcome {
        let mut bar = Bar::new();
        let answer: Result<Migrated, _> =
            self.client.ask_with(request, |progress| bar.tell(progress));
        drop(bar);
        let migrated = answer.map_err(|error| failure(name, error))?;
        self.print(&migrated, show::migrated)?;
        match show::failed_whole(&migrated, filtered) {
            None => Ok(SUCCESS),
            Some(why) => Err(Failure::usage(format_args!("{name}: nothing moved: {why}"))),
        }
    }
}

fn failure(name: &str, error: ClientError) -> Failure {
    let message = format!("{name}: {error}");
    match error {
        ClientError::Refused(refusal)
            if !matches!(refusal.kind, ErrorKind::Over | ErrorKind::Failed) =>
        {
            Failure::usage(message)
        }
        _ => Failure::vm(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_targets_say_what_they_should_be() {
        let range = "0x40000000+64M".parse::<RangeArg>().unwrap().0;
        assert_eq!((range.base.0, range.size), (1 << 30, 64 << 20));
        assert!("0x40000000".parse::<RangeArg>().unwrap_err().contains("GPA+SIZE"));
        assert!("a+64M".parse::<RangeArg>().unwrap_err().contains("\"a\""));
        assert!("0+b".parse::<RangeArg>().unwrap_err().contains("\"b\""));
        assert_eq!("region:3".parse::<ToArg>().unwrap().0, To::Pool(3));
        assert!("region:256".parse::<ToArg>().unwrap_err().contains("region:N"));
    }
}
