//! Threads that share the tasks of one call after another.
//!
//! A step is some hundred calls with a few microseconds between them, and
//! waking a thread that sleeps takes tens of them. So a member that has nothing
//! to do looks for the next call for [`PATIENCE`] before it sleeps: within a
//! step nobody is woken, and between steps no processor is held.
//!
//! Each member has tasks of its own, one after the other, so that a product
//! reads memory in order; who is done takes from the ends of the others. A
//! member that comes late, or not at all on a busy machine, is not waited for:
//! its tasks are done by then.

use std::any::Any;
use std::cell::UnsafeCell;
use std::fmt;
use std::hint::spin_loop;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use crate::parallel::Parallel;

/// How long a member looks for the next call before it sleeps. Norms and
/// activations of a decoding step, which run between two calls, take less;
/// a processor that somebody else wants is given up after it.
const PATIENCE: Duration = Duration::from_micros(100);
/// Looks between two readings of the clock.
const LOOKS: usize = 64;

/// The state of a [`Team`]: whether a call takes members, how many are in it, and its number.
const OPEN: u64 = 1;
const MEMBER: u64 = 2;
const MEMBERS: u64 = 0xffff << 1;
const CALL: u64 = 1 << 17;

/// What a call runs.
type Task = dyn Fn(usize) + Sync;

/// Tasks `next..end` that are left to a member, in one word: `next << 32 | end`.
///
/// On cache lines of its own, which no other member writes but when it takes a task.
#[repr(align(128))]
#[derive(Debug, Default)]
struct Share(AtomicU64);

const fn pack(next: u64, end: u64) -> u64 {
    (next << 32) | end
}

impl Share {
    /// Takes the first task, or the last for somebody else.
    fn take(&self, own: bool) -> Option<usize> {
        let mut word = self.0.load(Ordering::Relaxed);
        loop {
            let (next, end) = (word >> 32, word & 0xffff_ffff);
            if next >= end {
                return None;
            }
            let (task, left) = if own {
                (next, pack(next + 1, end))
            } else {
                (end - 1, pack(next, end - 1))
            };
            match self
                .0
                .compare_exchange_weak(word, left, Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => return usize::try_from(task).ok(),
                Err(now) => word = now,
            }
        }
    }
}

/// A thread of a team.
#[derive(Debug, Default)]
struct Member {
    share: Share,
    sleeps: AtomicBool,
}

struct Shared {
    state: AtomicU64,
    /// The task of the open call; written while the state is closed and nobody is in.
    task: UnsafeCell<Option<*const Task>>,
    members: Vec<Member>,
    ends: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// How long a member looks for the next call before it sleeps.
    patience: Duration,
}

// SAFETY: `task` is written by the caller alone while the state is closed
// without members, and read by members that entered an open call; entering and
// closing are acquire and release operations on `state`. The function behind it
// is `Sync`, and the caller keeps it alive until the last member has left.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("state", &self.state)
            .field("members", &self.members)
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// Runs tasks for the member `me` until none is left.
    fn work(&self, me: usize, task: &(dyn Fn(usize) + Sync)) {
        let others = || (1..self.members.len()).map(|k| (me + k) % self.members.len());
        let run = || {
            while let Some(at) = self.members[me].share.take(true) {
                task(at);
            }
            for other in others() {
                while let Some(at) = self.members[other].share.take(false) {
                    task(at);
                }
            }
        };
        if let Err(payload) = catch_unwind(AssertUnwindSafe(run)) {
            let mut first = self.panic.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert(payload);
        }
    }

    /// Enters the open call unless it is `last`; returns its number.
    fn enter(&self, last: u64) -> Option<u64> {
        let mut state = self.state.load(Ordering::Relaxed);
        loop {
            let call = state / CALL;
            if state & OPEN == 0 || call == last {
                return None;
            }
            match self.state.compare_exchange_weak(
                state,
                state + MEMBER,
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Some(call),
                Err(now) => state = now,
            }
        }
    }

    /// Whether there is a call to enter or the team ends.
    fn wanted(&self, last: u64) -> bool {
        let state = self.state.load(Ordering::Relaxed);
        (state & OPEN != 0 && state / CALL != last) || self.ends.load(Ordering::Relaxed)
    }

    /// Waits for the next call.
    fn wait(&self, me: usize, last: u64) {
        let started = Instant::now();
        loop {
            for _ in 0..LOOKS {
                if self.wanted(last) {
                    return;
                }
                spin_loop();
            }
            if started.elapsed() > self.patience {
                break;
            }
        }
        let sleeps = &self.members[me].sleeps;
        sleeps.store(true, Ordering::SeqCst);
        // Either the caller sees that we sleep, or we see its call.
        fence(Ordering::SeqCst);
        while sleeps.load(Ordering::SeqCst) && !self.wanted(last) {
            thread::park();
        }
        sleeps.store(false, Ordering::SeqCst);
    }

    fn member(&self, me: usize) {
        // Calls count from 1.
        let mut last = 0;
        while !self.ends.load(Ordering::Relaxed) {
            if let Some(call) = self.enter(last) {
                last = call;
                // SAFETY: inside an open call the task is there, and it lives
                // until this member has left.
                if let Some(task) = unsafe { *self.task.get() } {
                    // SAFETY: as above.
                    self.work(me, unsafe { &*task });
                }
                self.state.fetch_sub(MEMBER, Ordering::Release);
            } else {
                self.wait(me, last);
            }
        }
    }
}

/// Threads that run the tasks of a kernel.
#[derive(Debug)]
pub struct Team {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    sleepers: Vec<Thread>,
    /// One call at a time.
    call: Mutex<()>,
}

impl Team {
    /// A team of `size`, the calling thread included. The others get the
    /// processors and the priority of the thread that makes them.
    ///
    /// # Errors
    /// When the system gives no threads.
    pub fn new(size: usize) -> io::Result<Self> {
        Self::with_patience(size, PATIENCE)
    }

    /// As [`new`](Self::new), with members that look for the next call no longer than `patience`: for a team that
    /// shares its processors with other threads of the same step.
    ///
    /// # Errors
    /// When the system gives no threads.
    pub fn with_patience(size: usize, patience: Duration) -> io::Result<Self> {
        let size = size.max(1);
        let shared = Arc::new(Shared {
            patience,
            state: AtomicU64::new(0),
            task: UnsafeCell::new(None),
            members: (0..size).map(|_| Member::default()).collect(),
            ends: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let mut team = Self {
            shared,
            threads: Vec::new(),
            sleepers: Vec::new(),
            call: Mutex::new(()),
        };
        for me in 1..size {
            let shared = Arc::clone(&team.shared);
            let thread = thread::Builder::new()
                .name(format!("glm-step-{me}"))
                .spawn(move || shared.member(me))?;
            team.sleepers.push(thread.thread().clone());
            team.threads.push(thread);
        }
        Ok(team)
    }

    fn wake(&self) {
        fence(Ordering::SeqCst);
        for (member, thread) in self.shared.members[1..].iter().zip(&self.sleepers) {
            if member.sleeps.swap(false, Ordering::SeqCst) {
                thread.unpark();
            }
        }
    }

    /// Runs `task` with every member; the caller holds `call`.
    fn share_out(&self, tasks: u64, task: &(dyn Fn(usize) + Sync)) {
        let shared = &*self.shared;
        let size = shared.members.len() as u64;
        for (me, member) in (0..).zip(&shared.members) {
            let share = pack(tasks * me / size, tasks * (me + 1) / size);
            member.share.0.store(share, Ordering::Relaxed);
        }
        // SAFETY: the lifetime ends here, before the caller's; see the closing below.
        let task: &Task = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &Task>(task) };
        // SAFETY: the state is closed and nobody is in: this thread alone is here.
        unsafe { *shared.task.get() = Some(task) };
        let call = shared.state.load(Ordering::Relaxed) / CALL + 1;
        shared.state.store((call * CALL) | OPEN, Ordering::Release);
        self.wake();
        shared.work(0, task);
        // Nobody enters any more, and who is inside is on a last task.
        let mut state = shared.state.fetch_and(!OPEN, Ordering::Acquire);
        let mut looks = 0_usize;
        while state & MEMBERS != 0 {
            looks += 1;
            // A member without a processor gets this one.
            if looks.is_multiple_of(16 * LOOKS) {
                thread::yield_now();
            } else {
                spin_loop();
            }
            state = shared.state.load(Ordering::Acquire);
        }
    }
}

impl Parallel for Team {
    fn threads(&self) -> usize {
        self.shared.members.len()
    }

    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        // A call inside of a task, or of a second thread, runs alone.
        let free = match self.call.try_lock() {
            Ok(free) => Some(free),
            Err(std::sync::TryLockError::Poisoned(free)) => Some(free.into_inner()),
            Err(std::sync::TryLockError::WouldBlock) => None,
        };
        let count = u32::try_from(tasks).ok();
        match (free, count) {
            (Some(free), Some(count)) if tasks > 1 && self.shared.members.len() > 1 => {
                self.share_out(u64::from(count), task);
                let panic = &self.shared.panic;
                let panic = panic.lock().unwrap_or_else(PoisonError::into_inner).take();
                drop(free);
                if let Some(payload) = panic {
                    resume_unwind(payload);
                }
            }
            _ => (0..tasks).for_each(task),
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::SeqCst);
        self.wake();
        for thread in &self.sleepers {
            thread.unpark();
        }
        for thread in self.threads.drain(..) {
            // A member catches the panics of tasks and has none of its own.
            let _ = thread.join();
        }
    }
}
