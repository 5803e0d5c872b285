//! Somebody who keeps moving a guest's memory by its API socket, until the
//! guest is over.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use neap_memory::GpaRange;
use neap_vmm::control::api::{
    Hex, Migrate, Migrated, Range, Request, Residency, Stalls, Status, To,
};
use neap_vmm::control::client::{Client, ClientError};

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

impl Moves {
    /// Those after `before`.
    pub fn since(&self, before: &Self) -> Self {
        Self {
            out: self.out - before.out,
            home: self.home - before.home,
            verified: self.verified - before.verified,
            misplaced: self.misplaced - before.misplaced,
            accounted: self.accounted - before.accounted,
            unaccounted: self.unaccounted - before.unaccounted,
            stalls: self.stalls,
        }
    }
}

/// A thread that moves.
#[derive(Debug)]
pub struct Churn {
    moves: Arc<Mutex<Vec<Moves>>>,
    thread: JoinHandle<()>,
}

impl Churn {
    /// Moves each of `ranges` in turn to each of the pools and home again, by
    /// the socket at `path`.
    pub fn start(path: &Path, ranges: Vec<GpaRange>, pools: u8) -> Self {
        let path = path.to_owned();
        let moves = Arc::new(Mutex::new(vec![Moves::default(); ranges.len()]));
        let counts = Arc::clone(&moves);
        let thread = std::thread::spawn(move || churn(&path, &ranges, pools, &counts));
        Self { moves, thread }
    }

    /// What moved of each range until now.
    pub fn so_far(&self) -> Vec<Moves> {
        self.moves.lock().unwrap().clone()
    }

    /// What moved of each range. The machine must be over.
    pub fn finish(self) -> Vec<Moves> {
        self.thread.join().unwrap();
        self.moves.lock().unwrap().clone()
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

/// Status with the kernel's books; of several looks the first that found
/// everything at rest, or the last.
fn at_rest(client: &mut Client) -> Result<Status, ClientError> {
    const LOOKS: u32 = 5;
    for _ in 1..LOOKS {
        let status = client.ask::<Status>(&Request::Status { verify: true })?;
        let accounts = status.tiers.as_ref().and_then(|tiers| tiers.accounts.as_ref());
        if accounts.is_some_and(|accounts| accounts.settled) {
            return Ok(status);
        }
    }
    client.ask(&Request::Status { verify: true })
}

fn churn(path: &Path, ranges: &[GpaRange], pools: u8, moves: &Mutex<Vec<Moves>>) {
    let mut client = connect(path);
    'moving: for round in 0u64.. {
        let pool = To::Pool((round % u64::from(pools)) as u8);
        let since = Instant::now();
        for to in [pool, To::Home] {
            for (number, range) in ranges.iter().enumerate() {
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
                let moves = &mut moves.lock().unwrap()[number];
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
            // Others may move memory all the while.
            let Ok(status) = at_rest(&mut client) else { break };
            let moves = &mut moves.lock().unwrap()[0];
            moves.verified += verified.checked;
            moves.misplaced += verified.mismatches.len();
            let tiers = status.tiers.unwrap_or_default();
            moves.stalls = tiers.stalls;
            let accounts = tiers.accounts.unwrap_or_default();
            moves.accounted += u64::from(accounts.settled);
            moves.unaccounted += accounts.differences.len();
            if !accounts.differences.is_empty() {
                eprintln!("{accounts:?}");
            }
        }
    }
}
