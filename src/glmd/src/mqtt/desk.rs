//! Requests from arrival to acknowledgement. Pure: it sends nothing and reads no clock.
//!
//! A request that is delivered twice is one job with two deliveries. Clients
//! take turns: a device that sends a hundred requests at once delays its own,
//! not those of others.
//!
//! # How much is held
//! With MQTT 5 the broker hands over at most Receive Maximum requests before
//! one is acknowledged. 3.1.1 has no such word, and a broker may forget its own
//! count when a session is resumed (mosquitto 2.0.11 hands over everything that
//! waited). So the desk is bounded in bytes: by what a broker that keeps to
//! Receive Maximum could fill. A request that finds no room is not refused, it
//! is left unacknowledged with the broker; see [`Acks`](super::acks::Acks).

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::acks::Delivery;
use super::journal::Key;
use super::request::{ReplyTo, Request, Work};

/// Bounds of a desk.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of requests that are held, as they were delivered and with [`JOB_BYTES`] for each.
    pub bytes: usize,
    /// Requests that are worked on at a time.
    pub running: usize,
    /// Of these, most of one client.
    pub running_of_one: usize,
}

/// Bytes that a request takes besides its message: its place in the maps here, its task, its names.
pub const JOB_BYTES: usize = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Waiting,
    Running,
    /// Its answer is on its way to the journal or the broker.
    Answered,
}

#[derive(Debug)]
struct Job {
    request: Request,
    arrived: Instant,
    stage: Stage,
    deliveries: Vec<Delivery>,
}

/// What became of a request that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// It waits for its turn.
    Waits,
    /// It is under way already; its answer will settle this delivery too.
    UnderWay,
    /// There is no room for it now; nothing was taken.
    NoRoom,
}

/// A request whose turn has come.
#[derive(Debug, PartialEq)]
pub struct Turn {
    /// Its job.
    pub key: Key,
    /// What it wants.
    pub work: Work,
    /// Where the answer goes.
    pub reply: ReplyTo,
    /// What is left of the time in which the answer is wanted.
    pub left: Option<Duration>,
}

/// What to cancel turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// It had not begun.
    Waiting(Key),
    /// Somebody works on it.
    Running(Key),
    /// It is answered already, or never was here.
    Nothing,
}

/// Requests that are not acknowledged.
#[derive(Debug)]
pub struct Desk {
    limits: Limits,
    jobs: HashMap<Key, Job>,
    /// Waiting jobs of each client, by response topic; a client with none is not in it.
    waiting: HashMap<String, VecDeque<Key>>,
    /// Clients with waiting jobs, in the order of their turns.
    turns: VecDeque<String>,
    running: HashMap<String, usize>,
    bytes: usize,
    salt: u64,
}

impl Desk {
    /// An empty desk.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            jobs: HashMap::new(),
            waiting: HashMap::new(),
            turns: VecDeque::new(),
            running: HashMap::new(),
            bytes: 0,
            salt: 0,
        }
    }

    /// Requests that are held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.jobs.len()
    }

    /// Whether so much room is free that it is worth to ask the broker for more.
    #[must_use]
    pub const fn is_roomy(&self) -> bool {
        self.bytes <= self.limits.bytes / 2
    }

    /// Whether no request is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// Requests that wait for their turn.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.values().map(VecDeque::len).sum()
    }

    /// Requests that are worked on.
    #[must_use]
    pub fn running(&self) -> usize {
        self.running.values().sum()
    }

    /// Whether a request with this key is held.
    #[must_use]
    pub fn holds(&self, key: &Key) -> bool {
        self.jobs.contains_key(key)
    }

    /// Takes a request. `repeats` tells whether it means the same as an earlier one with its key.
    pub fn arrive(
        &mut self,
        mut request: Request,
        delivery: Option<Delivery>,
        repeats: bool,
        now: Instant,
    ) -> Arrival {
        if let Some(job) = self.jobs.get_mut(&request.key) {
            if repeats {
                job.deliveries.extend(delivery);
                return Arrival::UnderWay;
            }
            // Two requests that nobody can tell apart, and both want an answer.
            self.salt += 1;
            for (byte, salt) in request.key.iter_mut().zip(self.salt.to_le_bytes()) {
                *byte ^= salt;
            }
        }
        let size = request.size + JOB_BYTES;
        // An empty desk takes any request: one that never fits would be postponed for ever.
        if self.bytes + size > self.limits.bytes && !self.jobs.is_empty() {
            return Arrival::NoRoom;
        }
        self.bytes += size;
        let client = request.reply.topic.clone();
        let key = request.key;
        self.jobs.insert(
            key,
            Job {
                request,
                arrived: now,
                stage: Stage::Waiting,
                deliveries: delivery.into_iter().collect(),
            },
        );
        let queue = self.waiting.entry(client.clone()).or_default();
        if queue.is_empty() {
            self.turns.push_back(client);
        }
        queue.push_back(key);
        Arrival::Waits
    }

    /// The next request to work on, if one may begin.
    pub fn next(&mut self, now: Instant) -> Option<Turn> {
        if self.running() >= self.limits.running {
            return None;
        }
        for _ in 0..self.turns.len() {
            let client = self.turns.pop_front()?;
            if self.running.get(&client).copied().unwrap_or(0) >= self.limits.running_of_one {
                self.turns.push_back(client);
                continue;
            }
            let queue = self.waiting.get_mut(&client)?;
            let key = queue.pop_front()?;
            if queue.is_empty() {
                self.waiting.remove(&client);
            } else {
                self.turns.push_back(client.clone());
            }
            *self.running.entry(client).or_default() += 1;
            let job = self.jobs.get_mut(&key)?;
            job.stage = Stage::Running;
            let waited = now.saturating_duration_since(job.arrived);
            return Some(Turn {
                key,
                work: job.request.work.clone(),
                reply: job.request.reply.clone(),
                left: job.request.deadline.map(|d| d.saturating_sub(waited)),
            });
        }
        None
    }

    /// The request has its answer: whoever waits next may begin. `None` when it had one before.
    pub fn answered(&mut self, key: &Key) -> Option<ReplyTo> {
        let job = self.jobs.get_mut(key)?;
        let client = &job.request.reply.topic;
        match job.stage {
            Stage::Answered => return None,
            Stage::Running => {
                if let Some(count) = self.running.get_mut(client) {
                    *count -= 1;
                    if *count == 0 {
                        self.running.remove(client);
                    }
                }
            }
            Stage::Waiting => {
                if let Some(queue) = self.waiting.get_mut(client) {
                    queue.retain(|k| k != key);
                    if queue.is_empty() {
                        self.waiting.remove(client);
                        self.turns.retain(|c| c != client);
                    }
                }
            }
        }
        job.stage = Stage::Answered;
        Some(job.request.reply.clone())
    }

    /// The broker has the answer: the request is over. Returns the deliveries to settle.
    pub fn finish(&mut self, key: &Key) -> Vec<Delivery> {
        let Some(job) = self.jobs.remove(key) else {
            return Vec::new();
        };
        self.bytes -= job.request.size + JOB_BYTES;
        job.deliveries
    }

    /// Whether the broker will deliver a request again as long as it is not settled.
    #[must_use]
    pub fn is_owed(&self, key: &Key) -> bool {
        (self.jobs.get(key)).is_some_and(|job| !job.deliveries.is_empty())
    }

    /// What a client means by the name of a request.
    #[must_use]
    pub fn find(&self, name: &Key) -> Target {
        let found = self
            .jobs
            .iter()
            .find(|(_, job)| job.request.name == *name && job.stage != Stage::Answered);
        match found {
            Some((key, job)) if job.stage == Stage::Waiting => Target::Waiting(*key),
            Some((key, _)) => Target::Running(*key),
            None => Target::Nothing,
        }
    }

    /// The connection is gone: its deliveries can no longer be acknowledged.
    pub fn connection_lost(&mut self) {
        for job in self.jobs.values_mut() {
            job.deliveries.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::acks::Acks;
    use super::*;
    use crate::service::Op;

    const LIMITS: Limits = Limits {
        bytes: 8 * (100 + JOB_BYTES),
        running: 3,
        running_of_one: 2,
    };

    fn request(client: &str, n: u8) -> Request {
        Request {
            work: Work::Ask {
                op: Op::Infill,
                fields: serde_json::Map::new(),
            },
            reply: ReplyTo {
                topic: client.to_owned(),
                correlation: None,
                transaction: None,
            },
            key: [n; 32],
            identified: true,
            name: [n; 32],
            size: 100,
            deadline: Some(Duration::from_secs(10)),
        }
    }

    fn begun(desk: &mut Desk, now: Instant) -> Vec<u8> {
        std::iter::from_fn(|| desk.next(now).map(|turn| turn.key[0])).collect()
    }

    #[test]
    fn clients_take_turns() {
        let (mut desk, mut acks, now) = (Desk::new(LIMITS), Acks::default(), Instant::now());
        for n in 0..4 {
            desk.arrive(request("chatty", n), Some(acks.delivered(())), true, now);
        }
        desk.arrive(request("quiet", 9), Some(acks.delivered(())), true, now);
        assert_eq!(begun(&mut desk, now), [0, 9, 1]);
        desk.answered(&[9; 32]);
        // Two of the chatty one run: it may have no more, though there is room.
        assert_eq!(begun(&mut desk, now), [0; 0]);
        desk.answered(&[0; 32]);
        assert_eq!(begun(&mut desk, now), [2]);
    }

    #[test]
    fn a_request_that_comes_again_is_the_same_job() {
        let (mut desk, mut acks, now) = (Desk::new(LIMITS), Acks::default(), Instant::now());
        let (first, second) = (acks.delivered(()), acks.delivered(()));
        desk.arrive(request("a", 1), Some(first), true, now);
        assert_eq!(
            desk.arrive(request("a", 1), Some(second), true, now),
            Arrival::UnderWay
        );
        assert_eq!(begun(&mut desk, now), [1]);
        assert!(desk.answered(&[1; 32]).is_some());
        assert!(desk.answered(&[1; 32]).is_none(), "one answer");
        assert_eq!(desk.finish(&[1; 32]), [first, second]);
        assert!(desk.is_empty());
    }

    #[test]
    fn requests_that_nobody_can_tell_apart_are_answered_each() {
        let (mut desk, mut acks, now) = (Desk::new(LIMITS), Acks::default(), Instant::now());
        for _ in 0..2 {
            desk.arrive(request("a", 1), Some(acks.delivered(())), false, now);
        }
        assert_eq!(begun(&mut desk, now).len(), 2);
    }

    #[test]
    fn waiting_costs_time() {
        let (mut desk, mut acks, now) = (Desk::new(LIMITS), Acks::default(), Instant::now());
        desk.arrive(request("a", 1), Some(acks.delivered(())), true, now);
        let turn = desk.next(now + Duration::from_secs(4)).expect("a turn");
        assert_eq!(turn.left, Some(Duration::from_secs(6)));
    }

    #[test]
    fn a_waiting_request_can_be_cancelled() {
        let (mut desk, mut acks, now) = (Desk::new(LIMITS), Acks::default(), Instant::now());
        desk.arrive(request("a", 1), Some(acks.delivered(())), true, now);
        assert_eq!(desk.find(&[1; 32]), Target::Waiting([1; 32]));
        desk.answered(&[1; 32]);
        assert_eq!(desk.find(&[1; 32]), Target::Nothing);
        assert_eq!(begun(&mut desk, now), [0; 0]);
        assert_eq!(desk.waiting(), 0);
    }

    proptest! {
        #[test]
        fn every_request_is_begun_and_answered_once(
            steps in proptest::collection::vec((0_u8..5, 0_u8..20, 0_u8..4), 0..200)
        ) {
            let (mut desk, mut acks, now) = (Desk::new(LIMITS), Acks::default(), Instant::now());
            let mut open: Vec<u8> = Vec::new();
            let mut running: Vec<u8> = Vec::new();
            let mut answered: Vec<u8> = Vec::new();
            for (step, n, client) in steps {
                match step {
                    0 => {
                        let arrival = desk.arrive(request(&client.to_string(), n), Some(acks.delivered(())), true, now);
                        match arrival {
                            Arrival::Waits => { prop_assert!(!open.contains(&n)); open.push(n) }
                            Arrival::UnderWay => prop_assert!(open.contains(&n)),
                            Arrival::NoRoom => prop_assert_eq!(desk.len(), 8),
                        }
                    }
                    1 => if let Some(turn) = desk.next(now) {
                        prop_assert!(!running.contains(&turn.key[0]) && !answered.contains(&turn.key[0]));
                        running.push(turn.key[0]);
                    },
                    2 => if let Some(n) = running.pop() {
                        prop_assert!(desk.answered(&[n; 32]).is_some());
                        answered.push(n);
                    },
                    3 => if let Some(n) = answered.pop() {
                        desk.finish(&[n; 32]);
                        open.retain(|o| *o != n);
                    },
                    _ => desk.connection_lost(),
                }
                prop_assert_eq!(desk.len(), open.len());
                prop_assert_eq!(desk.running(), running.len());
                prop_assert_eq!(desk.waiting(), open.len() - running.len() - answered.len());
                prop_assert!(running.len() <= LIMITS.running);
            }
        }
    }
}
