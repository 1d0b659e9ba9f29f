//! Lets a model answer: an engine of its own, asked as glmd asks its engine.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use glm::manifest::Task;
use glm::prompt::{Fit, Truncation};
use glm_engine::collect::Collected;
use glm_engine::loading::{BackendKind, Options, open};
use glm_engine::ops::{Classify, Infill, Operations, Planned, Terms};
use glm_engine::request::{Context, Placed, Request, ScoreItem, Work};
use glm_engine::units::SystemClock;
use glm_engine::{Config, Drain, Engine, EngineHandle, Error, Ticket};

use crate::failure::{Failure, Result};

/// Questions that are asked at a time: twice what a step serves, so that none runs half empty.
const WINDOW: usize = 32;
/// How often a model that was loaded is looked for; the engine measures its first steps meanwhile.
const GLANCE: Duration = Duration::from_millis(2);

/// A model that answers.
pub struct Asker {
    engine: EngineHandle,
    thread: JoinHandle<()>,
    operations: Operations,
}

/// Whether an answer is held to the form that its task asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The model writes what it likes.
    Free,
    /// What it writes has the form.
    Held,
}

impl Asker {
    /// Loads a model.
    pub fn start(folder: PathBuf, options: Options) -> Result<Self> {
        let (tell, told) = mpsc::channel();
        let source = move || {
            let model = open(&folder, &options);
            // The first loading is waited for; others have nobody to tell.
            let _ = tell.send(model.as_ref().map(|_| ()).map_err(Clone::clone));
            model
        };
        let clock = Arc::new(SystemClock::default());
        let (engine, handle) = Engine::new(Config::default(), Box::new(source), clock);
        let thread = engine.spawn().map_err(|e| Failure::io("a thread", e))?;
        let gone = || Error::Load {
            reason: "loading it panicked".to_owned(),
        };
        told.recv().map_err(|_| gone())??;
        let model = loop {
            match handle.model() {
                Some(model) => break model,
                None if thread.is_finished() => return Err(gone().into()),
                None => std::thread::sleep(GLANCE),
            }
        };
        Ok(Self {
            engine: handle,
            thread,
            operations: Operations::new(model)?,
        })
    }

    /// Ends the engine.
    pub fn stop(self) {
        self.engine.shutdown(Drain::Now, Box::new(|_| {}));
        // It ends after its step; a panic was told of when it happened.
        let _ = self.thread.join();
    }

    /// Model and backend, for people.
    pub fn runs_on(&self) -> String {
        let model = self.operations.model();
        let report = &model.report;
        format!(
            "{} on {}, {} threads, kernels {}",
            model.id,
            report.backend.map_or("none", BackendKind::name),
            report.threads,
            report.kernels.unwrap_or("of the runtime")
        )
    }

    /// A named task of the model.
    pub fn task_named(&self, name: &str) -> Option<&Task> {
        self.operations.model().tasks.get(name)
    }

    /// The task that a set is for: its name, or what stands before the first `-`.
    pub fn task_of(&self, set: &str) -> Result<String> {
        let stem = set.split('-').next().unwrap_or(set);
        [set, stem]
            .into_iter()
            .find(|name| self.task_named(name).is_some())
            .map(str::to_owned)
            .ok_or_else(|| {
                Failure::BadInput(format!(
                    "the model has no task `{set}` or `{stem}`, which the set {set} asks for"
                ))
            })
    }

    /// The likeliest label of each text.
    pub fn labels<'a>(
        &self,
        set: &str,
        texts: impl Iterator<Item = &'a str>,
        tell: &dyn Fn(usize) -> Result<()>,
    ) -> Result<Vec<String>> {
        let task = self.task_of(set)?;
        let plan = |text: &str| {
            let ask = Classify {
                texts: vec![text.to_owned()],
                task: Some(task.clone()),
                ..Classify::default()
            };
            self.operations.classify(&ask, Terms::default())
        };
        self.all(texts.map(plan), tell, |reader, collected| {
            let classified = reader.read(collected)?;
            let verdict = classified.verdicts.into_iter().next();
            Ok(verdict.map(|verdict| verdict.label).unwrap_or_default())
        })
    }

    /// What stands in the blank of each text, greedily, in at most `max_tokens`.
    pub fn infill(
        &self,
        texts: Vec<String>,
        max_tokens: usize,
        tell: &dyn Fn(usize) -> Result<()>,
    ) -> Result<Vec<String>> {
        let plan = |text: String| {
            let ask = Infill {
                max_tokens: Some(max_tokens),
                ..Infill::new(text)
            };
            self.operations.infill(ask, Terms::default())
        };
        self.filled(texts.into_iter().map(plan), tell)
    }

    /// What an infill task makes of each text.
    pub fn task(
        &self,
        name: &str,
        texts: Vec<String>,
        form: Form,
        tell: &dyn Fn(usize) -> Result<()>,
    ) -> Result<Vec<String>> {
        let Some(Task::Infill {
            pattern,
            max_tokens,
            ..
        }) = self.task_named(name)
        else {
            return Err(Failure::BadInput(format!(
                "`{name}` is no task that fills blanks"
            )));
        };
        if form == Form::Free {
            let texts = texts.iter().map(|text| pattern.replace("{text}", text));
            return self.infill(texts.collect(), *max_tokens, tell);
        }
        let plan = |text: String| {
            let ask = Infill {
                task: Some(name.to_owned()),
                ..Infill::new(text)
            };
            self.operations.infill(ask, Terms::default())
        };
        self.filled(texts.into_iter().map(plan), tell)
    }

    /// Loss in nats of each second part as one piece behind the first part, its end included.
    pub fn losses(
        &self,
        halves: &[(&str, &str)],
        tell: &dyn Fn(usize) -> Result<()>,
    ) -> Result<Vec<f64>> {
        let plan = |(head, tail): &(&str, &str)| -> glm_engine::Result<_> {
            Ok(Planned {
                request: self.piece(head, tail)?,
                reader: (),
            })
        };
        self.all(halves.iter().map(plan), tell, |(), collected| {
            let scores = collected.finished.scores.iter().flatten().flatten();
            Ok(-scores.sum::<f64>())
        })
    }

    fn piece(&self, head: &str, tail: &str) -> glm_engine::Result<Request> {
        let model = self.operations.model();
        let layout = self.operations.layout();
        let fit = Fit {
            limit: model.capabilities.max_tokens,
            truncation: Truncation::Refuse,
        };
        let head = model.tokenizer.encode_plain(head.trim_end())?;
        let prompt = layout.complete(head, fit)?;
        let mut ids = model.tokenizer.encode_plain(tail)?;
        // Causal families end a text with another token, and not every one of them was taught to.
        ids.extend(layout.special().eop);
        let candidate = (ids.into_iter().zip(prompt.continuation()))
            .map(|(id, position)| Placed { id, position })
            .collect();
        let item = ScoreItem {
            prompt: Arc::new(Context {
                bidirectional: prompt.bidirectional,
                tokens: prompt.tokens,
            }),
            candidates: vec![candidate],
        };
        Ok(Request {
            work: Work::Score(vec![item]),
            epoch: model.epoch,
            priority: glm_engine::units::Priority::default(),
            deadline: None,
            coalesce_key: None,
            client: "eval".into(),
        })
    }

    fn filled(
        &self,
        plans: impl Iterator<Item = glm_engine::Result<Planned<glm_engine::ops::infill::InfillReader>>>,
        tell: &dyn Fn(usize) -> Result<()>,
    ) -> Result<Vec<String>> {
        self.all(plans, tell, |reader, collected| {
            let choice = reader.read(collected).choices.into_iter().next();
            let blank = choice.and_then(|choice| choice.blanks.into_iter().next());
            Ok(blank.map(|blank| blank.text).unwrap_or_default())
        })
    }

    /// Answers in the order of the questions, of which a window is under way.
    fn all<R, T>(
        &self,
        plans: impl Iterator<Item = glm_engine::Result<Planned<R>>>,
        tell: &dyn Fn(usize) -> Result<()>,
        read: impl Fn(R, &Collected) -> glm_engine::Result<T>,
    ) -> Result<Vec<T>> {
        let mut answers = Vec::new();
        let mut window: VecDeque<(R, Ticket)> = VecDeque::new();
        let mut finish = |(reader, ticket): (R, Ticket)| -> Result<()> {
            answers.push(read(reader, &ticket.collect_blocking()?)?);
            tell(answers.len())
        };
        for plan in plans {
            let plan = plan?;
            if window.len() >= WINDOW
                && let Some(first) = window.pop_front()
            {
                finish(first)?;
            }
            window.push_back((plan.reader, self.engine.submit(plan.request)?));
        }
        for rest in window {
            finish(rest)?;
        }
        Ok(answers)
    }
}
