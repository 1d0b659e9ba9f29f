//! What is measured: steps of many sequences on some runtime.

use glm::spec::Visibility;
use glm::{ModelSpec, Position, TokenId};
use glm_engine::backend::{Backend, MemoryUse, Row, SeqId, Step};

/// Something that encodes prompts and continues many texts at once.
pub trait Subject {
    /// Forgets everything and encodes one prompt of `length` tokens, logits of the last wanted.
    fn prompt(&mut self, length: usize) -> Result<(), String>;

    /// Forgets everything and holds texts of these lengths.
    fn hold(&mut self, lengths: &[usize]) -> Result<(), String>;

    /// Adds one token to every text that is held.
    fn step(&mut self) -> Result<(), String>;
}

/// A backend of the engine.
pub struct Engine<'a> {
    backend: &'a mut dyn Backend,
    spec: &'a ModelSpec,
    held: Vec<(u64, usize)>,
    next: u64,
}

impl<'a> Engine<'a> {
    pub fn new(backend: &'a mut dyn Backend, spec: &'a ModelSpec) -> Self {
        Self {
            backend,
            spec,
            held: Vec::new(),
            next: 0,
        }
    }

    /// Memory that the backend holds.
    pub fn memory(&self) -> MemoryUse {
        self.backend.memory()
    }

    fn clear(&mut self) {
        for (seq, _) in self.held.drain(..) {
            self.backend.release(SeqId(seq));
        }
    }

    /// Rows `from..to` of a text.
    fn rows(&self, seq: u64, from: usize, to: usize) -> Vec<Row> {
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let prompt = from == 0 && self.spec.visibility() == Visibility::PrefixLm;
        (from..to)
            .map(|index| {
                // Any token does, but not the same one everywhere.
                let mixed = (seq * 7919 + index as u64 * 104_729) % self.spec.vocab_rows as u64;
                Row {
                    seq: SeqId(seq),
                    id: TokenId(u32::try_from(mixed).unwrap_or_default()),
                    position: if from > 0 && self.spec.two_dimensional() {
                        Position {
                            first: 1,
                            second: 1 + number(index) % 64,
                        }
                    } else {
                        Position::context(number(index))
                    },
                    visible: number(if prompt { to } else { index + 1 }),
                    logits: index + 1 == to,
                }
            })
            .collect()
    }

    fn run(&mut self, rows: Vec<Row>) -> Result<(), String> {
        self.backend
            .forward(&Step { rows })
            .map(|_| ())
            .map_err(|error| error.to_string())
    }

    fn start(&mut self, length: usize) -> Result<(), String> {
        let seq = self.next;
        self.next += 1;
        self.held.push((seq, length));
        self.run(self.rows(seq, 0, length))
    }
}

impl Drop for Engine<'_> {
    /// The next one counts its texts from 0 again.
    fn drop(&mut self) {
        self.clear();
    }
}

impl Subject for Engine<'_> {
    fn prompt(&mut self, length: usize) -> Result<(), String> {
        self.clear();
        self.start(length)
    }

    fn hold(&mut self, lengths: &[usize]) -> Result<(), String> {
        self.clear();
        lengths.iter().try_for_each(|length| self.start(*length))
    }

    fn step(&mut self) -> Result<(), String> {
        let rows = self
            .held
            .iter()
            .flat_map(|(seq, length)| self.rows(*seq, *length, length + 1))
            .collect();
        for (_, length) in &mut self.held {
            *length += 1;
        }
        self.run(rows)
    }
}
