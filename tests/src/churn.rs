//! Somebody who keeps moving a guest's memory by its API socket, until the
//! guest is over.

use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use neap_memory::GpaRange;
use neap_vmm::control::api::{
    Hex, Migrate, Migrated, Range, Request, Residency, Stalls, Status, To,
};
use neap_vmm::control::client::Client;

/// How long a machine may take to listen.
const PATIENCE: Duration = Duration::from_secs(60);
/// Rest between two rounds that moved next to nothing.
const SHORTEST_REST: Duration = Duration::from_millis(20);
/// Rest between two rounds, however long they took.
const LONGEST_REST: Duration = Duration::from_secs(2);

/// Granules that moved each way, and what the kernel said of where they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moves {
    /// To device frames.
    pub out: u64,
    /// To host RAM.
    pub home: u64,
    /// Granules whose place the kernel was asked for.
    pub verified: u64,
    /// Those that were elsewhere.
    pub misplaced: usize,
    /// Looks at the kernel's books that found everything at rest.
    pub accounted: u64,
    /// Where those said otherwise.
    pub unaccounted: usize,
    /// vCPUs parked for moves, at the last look at all of the machine.
    pub stalls: Option<Stalls>,
}

/// A thread that moves.
#[derive(Debug)]
pub struct Churn(JoinHandle<Vec<Moves>>);

impl Churn {
    /// Moves each of `ranges` in turn to each of the pools and home again, by
    /// the socket at `path`.
    pub fn start(path: &Path, ranges: Vec<GpaRange>, pools: u8) -> Self {
        let path = path.to_owned();
        Self(std::thread::spawn(move || churn(&path, &ranges, pools)))
    }

    /// What moved of each range. The machine must be over.
    pub fn finish(self) -> Vec<Moves> {
        self.0.join().unwrap()
    }
}

/// Connects to a machine that may not listen yet.
///
/// # Panics
/// It does not listen.
pub fn connect(path: &Path) -> Client {
    let since = Instant::now();
    loop {
        match Client::connect(path) {
            Ok(client) => return client,
            Err(error) => assert!(since.elapsed() < PATIENCE, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn churn(path: &Path, ranges: &[GpaRange], pools: u8) -> Vec<Moves> {
    let mut client = connect(path);
    let mut moves = vec![Moves::default(); ranges.len()];
    'moving: for round in 0u64.. {
        let pool = To::Pool((round % u64::from(pools)) as u8);
        let since = Instant::now();
        for to in [pool, To::Home] {
            for (range, moves) in ranges.iter().zip(&mut moves) {
                let request = Request::Migrate(Migrate {
                    ranges: vec![Range { base: Hex(range.base().0), size: range.size() }],
                    to,
                    select: None,
                    from_pool: None,
                    limit: None,
                    detach: false,
                });
                // An error is the end of the machine, which is what the guest
                // says or does not say.
                let Ok(answer) = client.ask::<Migrated>(&request) else { break 'moving };
                match to {
                    To::Home => moves.home += answer.moved.granules,
                    To::Pool(_) => moves.out += answer.moved.granules,
                }
            }
        }
        // Half of the time is the guest's: an emulated one has two processors
        // for itself and for the copies, and tests of its own with deadlines.
        std::thread::sleep(since.elapsed().clamp(SHORTEST_REST, LONGEST_REST));
        if round % 8 == 1 {
            let request = Request::Residency { verify: true, from: Hex(0) };
            let Ok(answer) = client.ask::<Residency>(&request) else { break };
            let verified = answer.verified.unwrap_or_default();
            moves[0].verified += verified.checked;
            moves[0].misplaced += verified.mismatches.len();
            let Ok(status) = client.ask::<Status>(&Request::Status { verify: true }) else {
                break;
            };
            let tiers = status.tiers.unwrap_or_default();
            moves[0].stalls = tiers.stalls;
            let accounts = tiers.accounts.unwrap_or_default();
            moves[0].accounted += u64::from(accounts.settled);
            moves[0].unaccounted += accounts.differences.len();
            if !accounts.differences.is_empty() {
                eprintln!("{accounts:?}");
            }
        }
    }
    moves
}
