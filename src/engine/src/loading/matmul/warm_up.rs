//! Times the products of a model by our kernels and by ONNX Runtime's: the same graph of one node twice, in sessions
//! like those that models run in, on weights of the model.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use glm_onnx::paging::{self, Constant, Matmul, Quantised};
use ort::environment::Environment;
use ort::session::{Session, SessionInputValue};
use ort::value::Tensor;

use super::verdict::{Measurement, Sample, Times, WORK};
use crate::backend::ort_paged::{self, told};
use crate::backend::paged::Operators;

/// A model is not held up longer; whoever is not done then is left behind, and stops when it sees that.
const MOST: Duration = Duration::from_millis(300);
/// No run is begun that would end after this.
const PLAN: Duration = Duration::from_millis(240);
/// No further shape is prepared after this: packing takes as long as some runs.
const PREPARE: Duration = Duration::from_millis(60);
/// Shapes that are timed; the three with the most weights have nine tenths of a GLM.
const SHAPES: usize = 3;
/// Most bytes of a product. Larger ones are cut; six of these in turn do not fit the caches of a board.
const PIECE: u64 = 3 << 20;
/// Outputs are cut to a multiple of this, as kernels like them.
const TILE: u64 = 64;
/// Every time is the best of at least so many, taken in turn.
const LEAST_ROUNDS: usize = 2;
/// And of at most so many: more do not get better.
const MOST_ROUNDS: usize = 12;
/// Others may have one part in so many of the processors' time meanwhile. With more it is chance whose kernel they hold
/// up, and nothing is kept.
const OTHERS: u64 = 8;
/// Row counts of [`WORK`], largest last.
const ROWS: [usize; WORK.len()] = [WORK[0].0, WORK[1].0, WORK[2].0];
/// Rows in the largest of them.
const WHOLE: usize = ROWS[ROWS.len() - 1];
/// First row and number of rows that must come out as they do among all: one alone, eight, odd numbers.
const PARTS: [(usize, usize); 6] = [(0, 1), (WHOLE - 1, 1), (0, 8), (13, 5), (2, 3), (9, 15)];

/// Weights of one shape that are timed.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    weights: Quantised,
    /// Bytes of all weights of the shape.
    bytes: u64,
}

/// The shapes with the most weights.
pub(super) fn pieces(constants: &[Constant]) -> Vec<Piece> {
    let mut shapes = BTreeMap::new();
    for constant in constants {
        if let Constant::Quantised(weights) = constant {
            let zeros = weights.zero_points.is_some();
            let shape = (weights.outputs, weights.inputs, weights.bits, weights.block);
            let piece = shapes.entry((shape, zeros)).or_insert_with(|| Piece {
                weights: cut(weights),
                bytes: 0,
            });
            piece.bytes += weights.bytes();
        }
    }
    let mut pieces: Vec<Piece> = shapes.into_values().collect();
    pieces.sort_by_key(|piece| std::cmp::Reverse(piece.bytes));
    pieces.truncate(SHAPES);
    pieces
}

/// The weights of the pieces, in their order.
pub(super) fn constants(pieces: &[Piece]) -> Vec<Constant> {
    let constant = |piece: &Piece| Constant::Quantised(Box::new(piece.weights.clone()));
    pieces.iter().map(constant).collect()
}

fn cut(weights: &Quantised) -> Quantised {
    let row = weights.values.bytes() / weights.outputs.max(1) as u64;
    let count = (PIECE / row.max(1) / TILE * TILE).max(TILE);
    weights.first_outputs(usize::try_from(count).unwrap_or(usize::MAX))
}

/// Time of all processors since boot, in hundredths of a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ticks {
    /// All of it.
    all: u64,
    /// What anybody had of it, other machines on the same hardware too.
    busy: u64,
    /// What this process had.
    own: u64,
}

impl Ticks {
    /// `None` where the system does not tell.
    fn read() -> Option<Self> {
        let read = |path| fs::read_to_string(path).ok();
        Self::parse(&read("/proc/stat")?, &read("/proc/self/stat")?)
    }

    /// Of proc(5): `cpu user nice system idle iowait irq softirq steal ...`, and fields 14 and 15 of a process.
    fn parse(system: &str, process: &str) -> Option<Self> {
        let words = system.lines().next()?.strip_prefix("cpu ")?;
        let ticks: Vec<u64> = (words.split_whitespace().take(8))
            .map_while(|word| word.parse().ok())
            .collect();
        let all: u64 = ticks.iter().sum();
        let idle = ticks.get(3)? + ticks.get(4)?;
        // The name, in brackets, may hold anything.
        let (_, fields) = process.rsplit_once(')')?;
        let mut own = fields.split_whitespace().skip(11).take(2);
        let mut next = || own.next()?.parse::<u64>().ok();
        Some(Self {
            all,
            busy: all - idle,
            own: next()? + next()?,
        })
    }

    /// Whether others had a part worth mentioning since `before`. One tick may have begun before.
    const fn disturbed(self, before: Self) -> bool {
        let busy = self.busy.saturating_sub(before.busy);
        let others = busy.saturating_sub(self.own.saturating_sub(before.own));
        others > self.all.saturating_sub(before.all) / OTHERS + 1
    }
}

/// What is timed, and where.
pub(super) struct Subject {
    pub(super) env: Environment,
    /// Where the files of the weights lie.
    pub(super) folder: PathBuf,
    /// Our operators, whose constants are the weights of the pieces.
    pub(super) operators: Arc<Operators>,
    pub(super) pieces: Vec<Piece>,
    pub(super) threads: usize,
}

/// Times the pieces.
///
/// # Errors
/// When a session cannot be made, or time is up.
pub(super) fn run(subject: Subject) -> Result<Measurement, String> {
    let (tell, told) = channel();
    let late = Arc::new(AtomicBool::new(false));
    let clock = Clock {
        started: Instant::now(),
        late: Arc::clone(&late),
    };
    let work = move || {
        // Nobody listens any more when it is late.
        let _ = tell.send(measure(&subject, &clock));
    };
    let thread = thread::Builder::new().name("glm-warm-up".to_owned());
    thread.spawn(work).map_err(|error| error.to_string())?;
    told.recv_timeout(MOST).unwrap_or_else(|error| {
        late.store(true, Ordering::Relaxed);
        Err(match error {
            RecvTimeoutError::Timeout => not_in_time(),
            RecvTimeoutError::Disconnected => "the warm-up panicked".to_owned(),
        })
    })
}

fn not_in_time() -> String {
    format!("not done in {} ms", MOST.as_millis())
}

struct Clock {
    started: Instant,
    /// Nobody waits any more.
    late: Arc<AtomicBool>,
}

impl Clock {
    /// Whether what takes `more` can be begun and be done by `end`.
    fn allows(&self, more: Duration, end: Duration) -> bool {
        !self.late.load(Ordering::Relaxed) && self.started.elapsed() + more < end
    }
}

fn measure(subject: &Subject, clock: &Clock) -> Result<Measurement, String> {
    let team = Arc::new(ort_paged::team(subject.threads, Matmul::Glmd)?);
    let mut timings = Vec::new();
    let mut invariant = true;
    for (index, piece) in subject.pieces.iter().enumerate() {
        if index > 0 && !clock.allows(Duration::ZERO, PREPARE) {
            break;
        }
        let session = |matmul, threads| {
            let model = paging::alone(&piece.weights, matmul, index);
            let Subject {
                env,
                folder,
                operators,
                ..
            } = subject;
            ort_paged::session(env, folder, &model, operators, &team, threads)
        };
        // Ours run on the team: the session's own threads would have nothing to do.
        let sessions = [
            session(Matmul::Glmd, 1).map_err(told)?,
            session(Matmul::OnnxRuntime, subject.threads).map_err(told)?,
        ];
        let mut timing = Timing::new(piece, sessions).map_err(told)?;
        invariant &= timing.is_invariant().map_err(told)?;
        timings.push(timing);
    }
    let before = Ticks::read();
    let mut rounds = 0;
    'rounds: while rounds < MOST_ROUNDS {
        for place in 0..ROWS.len() {
            for timing in &mut timings {
                if !clock.allows(timing.duration(place), PLAN) {
                    break 'rounds;
                }
                timing.take(place, rounds % 2 == 1).map_err(told)?;
            }
        }
        rounds += 1;
    }
    if rounds < LEAST_ROUNDS {
        return Err(not_in_time());
    }
    if (before.zip(Ticks::read())).is_some_and(|(before, after)| after.disturbed(before)) {
        return Err("the machine is busy with other work".to_owned());
    }
    Ok(Measurement {
        samples: samples(&timings),
        invariant,
        elapsed_ms: u64::try_from(clock.started.elapsed().as_millis()).unwrap_or(u64::MAX),
    })
}

#[allow(clippy::cast_precision_loss, reason = "a share of bytes")]
fn samples(timings: &[Timing]) -> Vec<Sample> {
    let sample = |timing: &Timing| {
        let weights = &timing.piece.weights;
        let times = ROWS.iter().zip(timing.best);
        Sample {
            outputs: weights.outputs,
            inputs: weights.inputs,
            bits: weights.bits,
            block: weights.block,
            count: timing.piece.bytes as f64 / weights.bytes().max(1) as f64,
            times: times
                .map(|(rows, [glmd, onnxruntime])| Times {
                    rows: *rows,
                    glmd,
                    onnxruntime,
                })
                .collect(),
        }
    };
    timings.iter().map(sample).collect()
}

/// One product in two sessions.
struct Timing {
    piece: Piece,
    /// Ours and ONNX Runtime's.
    sessions: [Session; 2],
    /// `[WHOLE, inputs]`.
    x: Vec<f32>,
    /// The first rows of it, by [`ROWS`].
    inputs: Vec<Tensor<f32>>,
    /// Nanoseconds, by [`ROWS`] and session.
    best: [[u64; 2]; ROWS.len()],
}

impl Timing {
    fn new(piece: &Piece, sessions: [Session; 2]) -> ort::Result<Self> {
        // Any numbers do that are not all alike.
        #[allow(clippy::cast_precision_loss, reason = "below 2^24")]
        let number = |place: usize| ((place * 7919) % 2003) as f32 / 1001.0 - 1.0;
        let x: Vec<f32> = (0..WHOLE * piece.weights.inputs).map(number).collect();
        let width = piece.weights.inputs;
        let inputs = ROWS.iter().map(|rows| tensor(&x, width, 0, *rows));
        Ok(Self {
            inputs: inputs.collect::<ort::Result<_>>()?,
            x,
            piece: piece.clone(),
            sessions,
            best: [[u64::MAX; 2]; ROWS.len()],
        })
    }

    /// Whether ONNX Runtime gives rows the same bits whatever stands beside them. Also brings in the weights.
    fn is_invariant(&mut self) -> ort::Result<bool> {
        let weights = &self.piece.weights;
        let [_, session] = &mut self.sessions;
        let Some(whole) = self.inputs.last() else {
            return Ok(false);
        };
        let all = output(session, whole)?;
        for (first, count) in PARTS {
            let part = tensor(&self.x, weights.inputs, first, count)?;
            let part = output(session, &part)?;
            let expected = all.iter().skip(first * weights.outputs);
            let bits = |x: &f32| x.to_bits();
            let same = part.len() == count * weights.outputs
                && part
                    .iter()
                    .map(bits)
                    .eq(expected.take(part.len()).map(bits));
            if !same {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What [`take`](Self::take) will take, by what it took before.
    fn duration(&self, place: usize) -> Duration {
        let nanos = |place: usize| {
            let best = self.best[place].iter().filter(|best| **best < u64::MAX);
            best.sum::<u64>()
        };
        Duration::from_nanos(nanos(0).saturating_add(nanos(place)))
    }

    /// Times both sessions, ONNX Runtime's first if `turned`.
    fn take(&mut self, place: usize, turned: bool) -> ort::Result<()> {
        for turn in 0..2 {
            let side = turn ^ usize::from(turned);
            let session = &mut self.sessions[side];
            let (first, x) = (&self.inputs[0], &self.inputs[place]);
            // As within a step: our threads are awake before our products and asleep before ONNX Runtime's.
            output_of(session, first)?;
            let started = Instant::now();
            output_of(session, x)?;
            let nanos = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
            let best = &mut self.best[place][side];
            *best = nanos.clamp(1, *best);
        }
        Ok(())
    }
}

/// Rows `first..first + count` as an input.
fn tensor(x: &[f32], width: usize, first: usize, count: usize) -> ort::Result<Tensor<f32>> {
    let rows = x.iter().skip(first * width).take(count * width);
    Tensor::from_array(([1, count, width], rows.copied().collect::<Vec<_>>()))
}

fn output(session: &mut Session, x: &Tensor<f32>) -> ort::Result<Vec<f32>> {
    let outputs = session.run([SessionInputValue::from(x)])?;
    Ok(outputs[0].try_extract_tensor::<f32>()?.1.to_vec())
}

/// As [`output`], for the time that it takes.
fn output_of(session: &mut Session, x: &Tensor<f32>) -> ort::Result<()> {
    session.run([SessionInputValue::from(x)]).map(drop)
}

#[cfg(test)]
mod tests {
    use glm_onnx::paging::{Blob, BlobData, ElementType};

    use super::*;

    fn weights(outputs: usize, inputs: usize) -> Constant {
        let blob = |dtype: ElementType, count: usize| Blob {
            name: "w".to_owned(),
            dtype,
            data: BlobData::External {
                file: "data".to_owned(),
                offset: 0,
                length: (count * dtype.size()) as u64,
            },
        };
        Constant::Quantised(Box::new(Quantised {
            outputs,
            inputs,
            bits: 8,
            block: 32,
            values: blob(ElementType::U8, outputs * inputs),
            scales: blob(ElementType::F32, outputs * inputs / 32),
            zero_points: None,
            bias: None,
        }))
    }

    #[test]
    fn others_on_the_same_processors_are_seen() {
        let read = |user: u64, idle: u64, own: u64| {
            let system = format!("cpu  {user} 5 20 {idle} 30 1 2 3 9 9\ncpu0 1 2\n");
            let process = format!("7 (a ) b) S 1 7 7 0 -1 4 9 0 0 0 {own} 6 0 0 20 0\n");
            Ticks::parse(&system, &process).unwrap()
        };
        let before = read(100, 900, 40);
        let (all, busy, own) = (1061, 131, 46);
        assert_eq!(before, Ticks { all, busy, own });
        assert!(!read(140, 908, 80).disturbed(before), "we alone");
        assert!(!read(140, 908, 74).disturbed(before), "a little");
        assert!(read(140, 908, 60).disturbed(before), "half of it");
        assert_eq!(Ticks::parse("cpu  1 2", "7 (a) S"), None);
        assert_eq!(Ticks::parse("", ""), None);
    }

    #[test]
    fn the_shapes_with_the_most_weights_are_timed_in_part() {
        let mut constants = vec![weights(59_264, 2048)];
        for _ in 0..28 {
            constants.extend([weights(3072, 2048), weights(2048, 2048)]);
            constants.extend([weights(12_288, 2048), weights(2048, 6144)]);
        }
        let pieces = pieces(&constants);
        let shapes: Vec<_> = (pieces.iter())
            .map(|piece| (piece.weights.outputs, piece.weights.inputs))
            .collect();
        assert_eq!(shapes, [(1536, 2048), (512, 6144), (1536, 2048)]);
        let all: u64 = quantised_bytes(&constants[1..]);
        let timed: u64 = pieces.iter().map(|piece| piece.bytes).sum();
        assert!(timed * 10 > all * 8);
        for piece in &pieces {
            assert!(piece.weights.values.bytes() <= PIECE);
        }
        // Small ones stay whole.
        let small = super::pieces(&[weights(64, 64), weights(320, 64)]);
        assert_eq!(small[0].weights.outputs, 320);
        assert_eq!(super::constants(&small).len(), 2);
    }

    fn quantised_bytes(constants: &[Constant]) -> u64 {
        let of = |constant: &Constant| match constant {
            Constant::Quantised(weights) => weights.bytes(),
            _ => 0,
        };
        constants.iter().map(of).sum()
    }
}
