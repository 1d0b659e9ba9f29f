//! Starts the two processes, squeezes, watches and judges.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use glm_engine::memory::telemetry::{Detail, Machine, Telemetry};
use glm_engine::units::Bytes;

use crate::engine::millis;
use crate::group::Group;

/// The hard limit.
const LIMIT: Bytes = Bytes::mib(512);
/// The hog leaves this much.
const LEFT: Bytes = Bytes::mib(64);
/// And takes so much at once.
const BITE: Bytes = Bytes::mib(32);
/// From pressure to a smaller budget.
const REACTION: u64 = 2_000;
/// From release to the old throughput.
const RECOVERY: u64 = 15_000;
/// Pressure begins where less than the floor and as much again is left.
const PRESSURE: Bytes = Bytes::mib(128);
/// Throughput is measured over so long.
const WINDOW: u64 = 3_000;
/// Nothing takes longer on the slowest machine.
const PATIENCE: u64 = 120_000;

#[derive(Clone, Debug)]
struct Sample {
    at: u64,
    budget: u64,
    level: String,
    footprint: u64,
    tokens: u64,
    preemptions: u64,
    watch: String,
}

/// A process with its lines.
struct Part {
    child: Child,
    input: Option<ChildStdin>,
    lines: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
}

impl Part {
    fn start(arguments: &[String]) -> Self {
        let program = std::env::current_exe().expect("a running program has a name");
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a process can be started");
        let output = child.stdout.take().expect("piped");
        let lines = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&lines);
        let reader = thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                sink.lock().expect("no reader panics").push(line);
            }
        });
        Self {
            input: child.stdin.take(),
            child,
            lines,
            reader: Some(reader),
        }
    }

    fn count(&self, line: &str) -> usize {
        let lines = self.lines.lock().expect("no reader panics");
        lines.iter().filter(|l| l.as_str() == line).count()
    }

    fn wait_for(&mut self, line: &str, count: usize) -> bool {
        let end = millis() + PATIENCE;
        while self.count(line) < count {
            if millis() > end || !matches!(self.child.try_wait(), Ok(None)) {
                return self.count(line) >= count;
            }
            thread::sleep(Duration::from_millis(2));
        }
        true
    }

    fn say(&mut self, line: &str) {
        if let Some(input) = &mut self.input {
            // A killed process is noticed by its exit status.
            let _ = writeln!(input, "{line}");
        }
    }

    /// Ends it by the end of its input; whether it ended well.
    fn end(&mut self) -> bool {
        drop(self.input.take());
        let end = millis() + PATIENCE;
        let status = loop {
            match self.child.try_wait() {
                Ok(None) if millis() < end => thread::sleep(Duration::from_millis(10)),
                Ok(status) => break status,
                Err(_) => break None,
            }
        };
        if status.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        status.is_some_and(|status| status.success())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if self.input.is_some() {
            self.end();
        }
    }
}

/// What is left, under the limit or above what the floor stands for.
enum Bound {
    Group(Group),
    /// `MemAvailable` at the beginning less the limit.
    Floor(Bytes),
}

impl Bound {
    fn free(&self) -> Bytes {
        match self {
            Self::Group(group) => group.free(),
            Self::Floor(floor) => {
                let system = Machine::default().snapshot(Detail::Quick).system;
                // The hog leaves the floor that a machine of this size would have.
                system.unwrap_or_default().available.less(*floor)
            }
        }
    }
}

/// One run in figures.
#[derive(Debug, Default)]
struct Outcome {
    bound: &'static str,
    watch: String,
    survived: bool,
    kills: u64,
    accepted: u64,
    /// Failed, lost, doubled, or answered differently.
    spoilt: [u64; 4],
    refused: u64,
    preemptions: u64,
    worst: String,
    /// Milliseconds from pressure to a smaller budget.
    reaction: Option<u64>,
    /// Milliseconds from release to the whole budget.
    whole: Option<u64>,
    /// Throughput after release, of the throughput before, in percent; tokens/s before.
    throughput: (f64, f64),
    /// Footprint after release, of the one before, in percent; MiB before.
    footprint: (f64, f64),
}

/// How long the parts of a run take, in milliseconds.
struct Times {
    calm: u64,
    hold: u64,
    after: u64,
}

/// All runs; the number of failed promises.
pub fn all(runs: Option<usize>, model: Option<String>) -> usize {
    let model = model.unwrap_or_else(|| "-".into());
    let Some(runs) = runs else {
        let times = Times {
            calm: 1_500,
            hold: 2_000,
            after: 0,
        };
        let outcome = run(0, &model, &times);
        let checks = steady(&[outcome]);
        return tell(&checks);
    };
    let times = Times {
        // Until the caches of keys and values are full: what grows by itself is not "the memory before".
        calm: 12_000,
        hold: 8_000,
        after: RECOVERY + 4_000,
    };
    println!(
        "{:>3} {:>9} {:>8} {:>6} {:>8} {:>8} {:>7} {:>9} {:>8} {:>11} {:>9}",
        "run",
        "accepted",
        "refused",
        "worst",
        "preempt",
        "react ms",
        "full ms",
        "tokens/s",
        "after %",
        "anon MiB",
        "after %"
    );
    let outcomes: Vec<Outcome> = (0..runs)
        .map(|number| {
            let o = run(number, &model, &times);
            println!(
                "{number:>3} {:>9} {:>8} {:>6} {:>8} {:>8} {:>7} {:>9.0} {:>8.0} {:>11.0} {:>9.0}",
                o.accepted,
                o.refused,
                o.worst,
                o.preemptions,
                o.reaction.map_or("-".into(), |ms| ms.to_string()),
                o.whole.map_or("-".into(), |ms| ms.to_string()),
                o.throughput.1,
                o.throughput.0,
                o.footprint.1,
                o.footprint.0,
            );
            o
        })
        .collect();
    println!(
        "limit: {}; pressure is learned by {}",
        outcomes[0].bound, outcomes[0].watch
    );
    let mut checks = steady(&outcomes);
    let all = |good: &dyn Fn(&Outcome) -> bool| outcomes.iter().all(good);
    let worst = |pick: &dyn Fn(&Outcome) -> f64| outcomes.iter().map(pick).fold(0.0, f64::max);
    let least = |pick: &dyn Fn(&Outcome) -> f64| outcomes.iter().map(pick).fold(f64::MAX, f64::min);
    #[allow(clippy::cast_precision_loss)] // Milliseconds.
    let real = |ms: Option<u64>| ms.map_or(f64::INFINITY, |ms| ms as f64);
    checks.push(Check {
        name: "pressure to a smaller budget, ms (at most 2000)",
        figure: worst(&|o| real(o.reaction)),
        good: all(&|o| o.reaction.is_some_and(|ms| ms <= REACTION)),
    });
    checks.push(Check {
        name: "release to the whole budget, ms (at most 15000)",
        figure: worst(&|o| real(o.whole)),
        good: all(&|o| o.whole.is_some_and(|ms| ms <= RECOVERY)),
    });
    checks.push(Check {
        name: "throughput within 15 s of release, % (at least 90)",
        figure: least(&|o| o.throughput.0),
        good: all(&|o| o.throughput.0 >= 90.0),
    });
    checks.push(Check {
        // Less than before is caches that are not full again, which the throughput above would show if it hurt.
        name: "anonymous memory after release, % (at most 110)",
        figure: worst(&|o| o.footprint.0),
        good: all(&|o| o.footprint.0 <= 110.0),
    });
    tell(&checks)
}

struct Check {
    name: &'static str,
    figure: f64,
    good: bool,
}

/// What must hold on any machine at any speed.
fn steady(outcomes: &[Outcome]) -> Vec<Check> {
    #[allow(clippy::cast_precision_loss)] // Counts.
    let sum = |pick: &dyn Fn(&Outcome) -> u64| outcomes.iter().map(pick).sum::<u64>() as f64;
    let zero = |name, figure| Check {
        name,
        figure,
        good: figure == 0.0,
    };
    let accepted = sum(&|o| o.accepted);
    #[allow(clippy::cast_precision_loss)] // Counts.
    let asked = 200.0 * outcomes.len() as f64;
    vec![
        zero("processes killed for want of memory", sum(&|o| o.kills)),
        zero(
            "engines that did not end well",
            sum(&|o| u64::from(!o.survived)),
        ),
        zero("accepted requests that failed", sum(&|o| o.spoilt[0])),
        zero("lost answers", sum(&|o| o.spoilt[1])),
        zero("doubled answers", sum(&|o| o.spoilt[2])),
        zero("answers that pressure changed", sum(&|o| o.spoilt[3])),
        Check {
            name: "accepted requests (at least 200 a run)",
            figure: accepted,
            good: accepted >= asked,
        },
        zero(
            "runs in which the budget did not fall",
            sum(&|o| u64::from(o.reaction.is_none())),
        ),
        zero(
            "runs in which it did not come back",
            sum(&|o| u64::from(o.whole.is_none())),
        ),
    ]
}

fn tell(checks: &[Check]) -> usize {
    for check in checks {
        let mark = if check.good { "ok" } else { "!" };
        println!("{:<52} {:>10.0} {mark}", check.name, check.figure);
    }
    let failed = checks.iter().filter(|check| !check.good).count();
    println!("{} passed, {failed} failed", checks.len() - failed);
    failed
}

fn run(number: usize, model: &str, times: &Times) -> Outcome {
    let name = format!("glmd-faults-{}-{number}", std::process::id());
    let available = Machine::default()
        .snapshot(Detail::Quick)
        .system
        .unwrap_or_default()
        .available;
    let bound = match Group::new(&name, LIMIT) {
        Ok(group) => Bound::Group(group),
        Err(_) => Bound::Floor(available.less(LIMIT)),
    };
    let (floor, folders, label) = match &bound {
        Bound::Group(group) => (
            "-".to_owned(),
            group.folders(),
            match group.version {
                glm_engine::memory::telemetry::GroupVersion::V1 => {
                    "memory control group, version 1"
                }
                glm_engine::memory::telemetry::GroupVersion::V2 => {
                    "memory control group, version 2"
                }
            },
        ),
        Bound::Floor(floor) => (
            floor.plus(LEFT).0.to_string(),
            Vec::new(),
            "none may be made here, so nothing can be killed; the governor's floor stands for it",
        ),
    };
    let folders: Vec<String> = folders.iter().map(|f| f.display().to_string()).collect();
    let mut arguments = vec!["engine".to_owned(), floor, model.to_owned()];
    arguments.extend_from_slice(&folders);
    let mut engine = Part::start(&arguments);
    assert!(engine.wait_for("ready", 1), "the engine does not start");
    let mut hog = Part::start(&[&["hog".to_owned()], &folders[..]].concat());
    assert!(hog.wait_for("ready", 1), "the hog does not start");
    thread::sleep(Duration::from_millis(times.calm));
    let squeeze = squeeze(&bound, &mut hog, times.hold);
    let whole = wait_until_whole(&mut engine, squeeze.released);
    let end = squeeze.released + times.after;
    thread::sleep(Duration::from_millis(end.saturating_sub(millis())));
    let stopped = millis();
    let survived = engine.end();
    hog.end();
    let kills = match &bound {
        Bound::Group(group) => group.kills(),
        Bound::Floor(_) => 0,
    };
    let lines = engine.lines.lock().expect("no reader panics").clone();
    // For whoever wants to look closer.
    let file = format!("{}/faults-{number}.log", env!("CARGO_TARGET_TMPDIR"));
    let _ = std::fs::write(file, lines.join("\n"));
    let samples: Vec<Sample> = lines.iter().filter_map(|line| parse(line)).collect();
    let mut outcome = judge(&samples, &squeeze, stopped);
    tally(&lines, &mut outcome);
    Outcome {
        bound: label,
        survived,
        kills,
        whole,
        ..outcome
    }
}

/// When what happened, in milliseconds since 1970.
struct Squeezed {
    began: u64,
    pressed: Option<u64>,
    released: u64,
}

/// Takes memory until little is left, keeps it so for a while, and lets go.
fn squeeze(bound: &Bound, hog: &mut Part, hold: u64) -> Squeezed {
    let began = millis();
    let (mut pressed, mut bites, mut full) = (None, 0, None::<u64>);
    loop {
        let free = bound.free();
        let now = millis();
        if free < PRESSURE {
            pressed.get_or_insert(now);
        }
        let bite = BITE.min(free.less(LEFT));
        if bite < Bytes::mib(1) {
            full.get_or_insert(now);
        }
        let since = full.map_or(0, |full| now - full);
        if since >= hold || now > began + PATIENCE {
            break;
        }
        // What the engine gives up is taken too, for the first half of the time.
        if bite >= Bytes::mib(1) && since <= hold / 2 {
            bites += 1;
            hog.say(&bite.0.to_string());
            if !hog.wait_for("done", bites) {
                break;
            }
        }
        thread::sleep(Duration::from_millis(100));
    }
    hog.say("free");
    hog.wait_for("done", bites + 1);
    Squeezed {
        began,
        pressed,
        released: millis(),
    }
}

/// Milliseconds until the budget is whole again.
fn wait_until_whole(engine: &mut Part, released: u64) -> Option<u64> {
    while millis() < released + PATIENCE {
        let last = {
            let lines = engine.lines.lock().expect("no reader panics");
            let whole = lines
                .iter()
                .filter_map(|line| parse(line))
                .map(|s| s.budget)
                .max();
            lines.iter().rev().find_map(|line| parse(line)).zip(whole)
        };
        if let Some((sample, whole)) = last
            && sample.at > released
            && sample.level == "green"
            && sample.budget * 10 >= whole * 9
        {
            return Some(sample.at - released);
        }
        if !matches!(engine.child.try_wait(), Ok(None)) {
            return None;
        }
        thread::sleep(Duration::from_millis(100));
    }
    None
}

fn parse(line: &str) -> Option<Sample> {
    let words: Vec<&str> = line.strip_prefix("sample ")?.split(' ').collect();
    let number = |index: usize| words.get(index)?.parse::<u64>().ok();
    Some(Sample {
        at: number(0)?,
        budget: number(1)?,
        level: (*words.get(2)?).to_owned(),
        footprint: number(3)?,
        tokens: number(4)?,
        preemptions: number(6)?,
        watch: (*words.get(8)?).to_owned(),
    })
}

fn judge(samples: &[Sample], squeeze: &Squeezed, stopped: u64) -> Outcome {
    let between = |from: u64, to: u64| {
        let inside = move |s: &&Sample| s.at >= from && s.at < to;
        samples.iter().filter(inside).collect::<Vec<_>>()
    };
    // The last three seconds of each: the first are for getting under way.
    let before = between(squeeze.began.saturating_sub(WINDOW), squeeze.began);
    let after = between(stopped.saturating_sub(WINDOW), stopped);
    let whole = samples.iter().map(|s| s.budget).max().unwrap_or(0);
    let smaller = between(squeeze.began, squeeze.released)
        .into_iter()
        .find(|s| s.budget < whole)
        .map(|s| s.at);
    // A budget that fell before the pressure did not wait for it.
    let reaction = (squeeze.pressed.zip(smaller)).map(|(p, s)| s.saturating_sub(p));
    let order = ["green", "yellow", "orange", "red", "black"];
    let rank = |s: &&Sample| order.iter().position(|name| *name == s.level);
    let percent = |now: f64, then: f64| now / then.max(f64::MIN_POSITIVE) * 100.0;
    // The best three seconds that end in time: on a shared machine any others may be somebody else's.
    let windows = (0..).map(|n| squeeze.released + n * 500);
    let windows = windows.take_while(|from| from + WINDOW <= squeeze.released + RECOVERY);
    let recovered = windows.map(|from| rate(&between(from, from + WINDOW)));
    let (rate, rate_after) = (rate(&before), recovered.fold(0.0, f64::max));
    let (held, held_after) = (median(&before), median(&after));
    Outcome {
        watch: samples.last().map(|s| s.watch.clone()).unwrap_or_default(),
        preemptions: samples.last().map_or(0, |s| s.preemptions),
        worst: samples
            .iter()
            .max_by_key(rank)
            .map(|s| s.level.clone())
            .unwrap_or_default(),
        reaction,
        throughput: (percent(rate_after, rate), rate),
        footprint: (percent(held_after, held), held),
        ..Outcome::default()
    }
}

/// Tokens a second.
#[allow(clippy::cast_precision_loss)] // Figures for people.
fn rate(samples: &[&Sample]) -> f64 {
    match samples {
        [first, .., last] if last.at > first.at => {
            (last.tokens - first.tokens) as f64 * 1000.0 / (last.at - first.at) as f64
        }
        _ => 0.0,
    }
}

/// Footprint in MiB.
#[allow(clippy::cast_precision_loss)] // Figures for people.
fn median(samples: &[&Sample]) -> f64 {
    let mut all: Vec<u64> = samples.iter().map(|s| s.footprint).collect();
    all.sort_unstable();
    all.get(all.len() / 2)
        .map_or(0.0, |bytes| *bytes as f64 / 1_048_576.0)
}

fn tally(lines: &[String], outcome: &mut Outcome) {
    let tally = lines.iter().find_map(|line| line.strip_prefix("tally "));
    let counts: Vec<u64> = tally
        .map(|t| t.split(' ').filter_map(|n| n.parse().ok()).collect())
        .unwrap_or_default();
    if let [accepted, _, failed, lost, doubled, wrong, refused] = counts[..] {
        outcome.accepted = accepted;
        outcome.spoilt = [failed, lost, doubled, wrong];
        outcome.refused = refused;
    }
}
