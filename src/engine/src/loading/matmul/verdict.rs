//! The decision: what is known before anything is timed, and what follows from times. Pure.

use std::fmt;

use glm_onnx::paging::Matmul;
use serde::{Deserialize, Serialize};

use crate::units::Bytes;

/// ONNX Runtime's products must take the time of ours over this: packing them costs memory that a mapped file does
/// not, and less would be noise.
const CLEARLY: f64 = 1.1;
/// Packed weights take at most one part in so many of the headroom: keys and values want the rest.
const PART: u64 = 2;
/// Rows of a step, and how many such steps there are in the work that decides: a text of 64 tokens that is answered
/// with 64, once alone and once beside seven others. Prompts come in chunks of 32.
pub(super) const WORK: [(usize, f64); 3] = [(1, 64.0), (8, 64.0), (32, 18.0)];

/// Products of one shape, timed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sample {
    /// Outputs of the product that was timed, which may be the first of a larger one.
    pub outputs: usize,
    /// Inputs.
    pub inputs: usize,
    /// Bits of a weight.
    pub bits: usize,
    /// Weights that share a scale.
    pub block: usize,
    /// How many times its weights the model has in this shape.
    pub count: f64,
    /// By number of rows.
    pub times: Vec<Times>,
}

/// The shortest time of one product by either kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Times {
    /// Rows of activations.
    pub rows: usize,
    /// Nanoseconds that ours took.
    pub glmd: u64,
    /// Nanoseconds that ONNX Runtime's took.
    pub onnxruntime: u64,
}

/// What a warm-up found out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measurement {
    /// Shapes, those with the most weights first.
    pub samples: Vec<Sample>,
    /// Whether ONNX Runtime gave every row the same bits alone and among others.
    pub invariant: bool,
    /// Milliseconds that it took.
    pub elapsed_ms: u64,
}

impl Measurement {
    /// Milliseconds that the products of a step with `rows` rows take, by ours and by ONNX Runtime's kernels.
    #[must_use]
    pub fn step(&self, rows: usize) -> Option<[f64; 2]> {
        let mut sum = [0.0; 2];
        for sample in &self.samples {
            let times = sample.times.iter().find(|times| times.rows == rows)?;
            for (sum, nanos) in sum.iter_mut().zip([times.glmd, times.onnxruntime]) {
                *sum += sample.count * milliseconds(nanos);
            }
        }
        let whole = sum.iter().all(|time| time.is_finite() && *time > 0.0);
        whole.then_some(sum)
    }

    /// How many times as fast ONNX Runtime's products do the work that decides; `None` when something was not timed.
    #[must_use]
    pub fn speedup(&self) -> Option<f64> {
        let mut sum = [0.0; 2];
        for (rows, steps) in WORK {
            for (sum, time) in sum.iter_mut().zip(self.step(rows)?) {
                *sum += steps * time;
            }
        }
        Some(sum[0] / sum[1])
    }
}

#[allow(clippy::cast_precision_loss, reason = "far below 2^53")]
fn milliseconds(nanos: u64) -> f64 {
    nanos as f64 / 1e6
}

/// What can be known without timing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// What the configuration asks for, if anything.
    pub only: Option<Matmul>,
    /// Weights of quantised products, packed.
    pub packed: Bytes,
    /// With less than this it does not matter.
    pub least: Bytes,
    /// Memory above the floor when the weights are mapped; `None` when the machine does not tell.
    pub headroom: Option<Bytes>,
}

/// Why these products.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Reason {
    /// The configuration says so.
    Forced,
    /// The graph has no quantised products.
    Nothing,
    /// The model is so small that it does not matter.
    Small,
    /// Packed weights would take too much of the memory that is left.
    NoRoom {
        /// What they take.
        packed: Bytes,
        /// Memory above the floor, where the machine tells.
        headroom: Option<Bytes>,
    },
    /// There are no times.
    NotMeasured(String),
    /// There are.
    Measured(Measurement),
    /// ONNX Runtime's were chosen and did not load or answer right.
    Failed(String),
}

/// Whose products a model uses, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// Whose.
    pub matmul: Matmul,
    /// Why.
    pub reason: Reason,
}

/// The verdict that needs no times; `None` where times decide.
#[must_use]
pub fn known(facts: &Facts) -> Option<Verdict> {
    let ours = |reason| {
        Some(Verdict {
            matmul: Matmul::Glmd,
            reason,
        })
    };
    let fits = (facts.headroom).is_some_and(|left| facts.packed.0 <= left.0 / PART);
    match facts.only {
        _ if facts.packed == Bytes(0) => ours(Reason::Nothing),
        Some(matmul) => Some(Verdict {
            matmul,
            reason: Reason::Forced,
        }),
        None if facts.packed < facts.least => ours(Reason::Small),
        None if !fits => ours(Reason::NoRoom {
            packed: facts.packed,
            headroom: facts.headroom,
        }),
        None => None,
    }
}

/// The verdict that times lead to: ONNX Runtime's when they are clearly faster and keep a row apart from its company.
#[must_use]
pub fn measured(outcome: Result<Measurement, String>) -> Verdict {
    let (matmul, reason) = match outcome {
        Ok(measurement) => {
            let faster = (measurement.speedup()).is_some_and(|speedup| speedup >= CLEARLY);
            let matmul = match faster && measurement.invariant {
                true => Matmul::OnnxRuntime,
                false => Matmul::Glmd,
            };
            (matmul, Reason::Measured(measurement))
        }
        Err(reason) => (Matmul::Glmd, Reason::NotMeasured(reason)),
    };
    Verdict { matmul, reason }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: Bytes| bytes.0 >> 20;
        write!(f, "{}", self.matmul)?;
        match &self.reason {
            Reason::Forced => f.write_str(", as model.matmul says"),
            Reason::Nothing => f.write_str(", for the graph has no quantised products"),
            Reason::Small => f.write_str(", for the model is so small that it does not matter"),
            Reason::NoRoom { packed, headroom } => {
                let packed = mib(*packed);
                write!(f, ", for onnxruntime's take {packed} MiB more, and ")?;
                match headroom {
                    Some(left) => write!(f, "{} MiB are left above the floor", mib(*left)),
                    None => f.write_str("how much is left is not known"),
                }
            }
            Reason::NotMeasured(reason) => write!(f, ", for nothing was timed: {reason}"),
            Reason::Failed(reason) => write!(f, ", for onnxruntime's do not work: {reason}"),
            Reason::Measured(measurement) => {
                let speedup = measurement.speedup().unwrap_or_default();
                match self.matmul {
                    Matmul::Glmd => {
                        write!(f, ", for onnxruntime's are {speedup:.2} times as fast")?
                    }
                    Matmul::OnnxRuntime => write!(f, ", {speedup:.2} times as fast as glmd's")?,
                }
                if speedup >= CLEARLY && !measurement.invariant {
                    f.write_str(", but a row's answer depends on the rows beside it")?;
                }
                times(measurement, f)
            }
        }
    }
}

/// Times of both.
fn times(measurement: &Measurement, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut first = true;
    for (rows, _) in WORK {
        let Some([glmd, onnxruntime]) = measurement.step(rows) else {
            continue;
        };
        let start = if first {
            " (glmd and onnxruntime: "
        } else {
            "; "
        };
        let s = if rows == 1 { "" } else { "s" };
        write!(f, "{start}{rows} row{s} {glmd:.2} and {onnxruntime:.2} ms")?;
        first = false;
    }
    if !first {
        write!(f, "; timed in {} ms)", measurement.elapsed_ms)?;
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Two shapes; ONNX Runtime takes `ratio` of the time of ours.
    pub(crate) fn timed(ratio: f64, invariant: bool) -> Measurement {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "positive and small"
        )]
        let times = |(rows, _): (usize, f64)| Times {
            rows,
            glmd: 1_000_000,
            onnxruntime: (1e6 * ratio) as u64,
        };
        let sample = |outputs, count| Sample {
            outputs,
            inputs: 2048,
            bits: 8,
            block: 32,
            count,
            times: WORK.map(times).to_vec(),
        };
        Measurement {
            samples: vec![sample(2048, 10.5), sample(1024, 4.0)],
            invariant,
            elapsed_ms: 210,
        }
    }

    #[test]
    fn what_is_known_is_not_timed() {
        let facts = Facts {
            only: None,
            packed: Bytes::mib(1000),
            least: Bytes::mib(32),
            headroom: Some(Bytes::mib(2000)),
        };
        let with = |change: &dyn Fn(&mut Facts)| {
            let mut facts = facts;
            change(&mut facts);
            known(&facts)
        };
        let ours = |reason| {
            Some(Verdict {
                matmul: Matmul::Glmd,
                reason,
            })
        };
        assert_eq!(known(&facts), None);
        assert_eq!(with(&|f| f.packed = Bytes(0)), ours(Reason::Nothing));
        assert_eq!(with(&|f| f.packed = Bytes::mib(31)), ours(Reason::Small));
        let headroom = Some(Bytes::mib(1999));
        let packed = facts.packed;
        let no_room = Reason::NoRoom { packed, headroom };
        assert_eq!(with(&|f| f.headroom = headroom), ours(no_room));
        assert!(with(&|f| f.headroom = None).is_some(), "nobody knows");
        for matmul in [Matmul::Glmd, Matmul::OnnxRuntime] {
            let reason = Reason::Forced;
            let forced = with(&|f| (f.only, f.headroom) = (Some(matmul), Some(Bytes(0))));
            assert_eq!(forced, Some(Verdict { matmul, reason }));
        }
        let forced = with(&|f| (f.only, f.packed) = (Some(Matmul::OnnxRuntime), Bytes(0)));
        assert_eq!(forced, ours(Reason::Nothing), "there is nothing to force");
    }

    #[test]
    fn every_verdict_says_why() {
        let no_room = |headroom| Verdict {
            matmul: Matmul::Glmd,
            reason: Reason::NoRoom {
                packed: Bytes::mib(1900),
                headroom,
            },
        };
        for (verdict, text) in [
            (
                measured(Ok(timed(0.5, true))),
                "onnxruntime, 2.00 times as fast as glmd's (glmd and onnxruntime: 1 row 14.50 and 7.25 ms; 8 rows",
            ),
            (
                measured(Ok(timed(0.5, false))),
                "glmd, for onnxruntime's are 2.00 times as fast, but a row's answer depends",
            ),
            (
                measured(Ok(timed(2.0, true))),
                "glmd, for onnxruntime's are 0.50 times as fast",
            ),
            (
                measured(Err("no session".to_owned())),
                "glmd, for nothing was timed: no session",
            ),
            (
                no_room(Some(Bytes::mib(900))),
                "1900 MiB more, and 900 MiB are left",
            ),
            (no_room(None), "is not known"),
        ] {
            let told = verdict.to_string();
            assert!(told.contains(text), "{told}");
        }
    }

    proptest! {
        #[test]
        fn onnxruntime_must_be_clearly_faster_and_keep_rows_apart(
            ratio in 0.1..3.0_f64,
            invariant: bool,
            lost in proptest::option::of(0..WORK.len()),
        ) {
            let mut measurement = timed(ratio, invariant);
            if let Some(lost) = lost {
                measurement.samples[1].times.remove(lost);
                prop_assert_eq!(measurement.speedup(), None);
            }
            let verdict = measured(Ok(measurement));
            let faster = 1.0 / ratio >= CLEARLY + 1e-3;
            let slower = 1.0 / ratio <= CLEARLY - 1e-3;
            if faster && invariant && lost.is_none() {
                prop_assert_eq!(verdict.matmul, Matmul::OnnxRuntime);
            }
            if slower || !invariant || lost.is_some() {
                prop_assert_eq!(verdict.matmul, Matmul::Glmd);
            }
        }

        #[test]
        fn steps_count_by_how_often_they_run(slow in 0..WORK.len(), factor in 1.5..4.0_f64) {
            // Slower in one kind of step only: never as bad as in that step, never better than even.
            let mut measurement = timed(1.0, true);
            for sample in &mut measurement.samples {
                let times = &mut sample.times[slow];
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small")]
                let nanos = (1e6 * factor) as u64;
                times.onnxruntime = nanos;
            }
            let speedup = measurement.speedup().unwrap();
            prop_assert!(speedup < 1.0 && speedup > 1.0 / factor);
        }
    }
}
