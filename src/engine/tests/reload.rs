//! One model after another: who serves meanwhile, and what a bad one changes. On models without weights.
#![allow(
    clippy::tests_outside_test_module,
    reason = "an integration test is a test module"
)]

mod support;

use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use glm_engine::control::{Allowance, Control, Load, Report};
use glm_engine::engine::Turn;
use glm_engine::model::{Model, ModelInfo, ModelSource, Reloaded};
use glm_engine::status::Phase;
use glm_engine::units::{Bytes, Level, Margin, Moment};
use glm_engine::{Config, Drain, Engine, EngineHandle, Error, Request, Result, Ticket};

use support::{Answer, Shared, TestClock, capabilities, context, generate, ids, info, source};

/// Turns that a test waits for another thread; each rests for a millisecond.
const PATIENCE: usize = 30_000;

/// A governor that reports so much headroom.
#[derive(Debug)]
struct Governor(Margin);

impl Control for Governor {
    fn allow(&mut self, _: Moment, _: &Load) -> Allowance {
        Allowance {
            level: Level::Green,
            ..Allowance::default()
        }
    }

    fn report(&self) -> Option<Report> {
        Some(Report {
            headroom: self.0,
            ..Report::default()
        })
    }
}

/// What a source was asked to do, in order.
type Calls = Arc<Mutex<Vec<&'static str>>>;

/// A new model that comes when the test says so, or does not come.
struct New {
    calls: Calls,
    go: Receiver<()>,
    size: Option<Bytes>,
    check: Result<()>,
    load: Box<dyn FnMut() -> Result<Model> + Send>,
}

impl ModelSource for New {
    fn load(&mut self) -> Result<Model> {
        self.calls.lock().unwrap().push("load");
        self.go.recv().expect("the test");
        (self.load)()
    }

    fn size(&self) -> Option<Bytes> {
        self.size
    }

    fn check(&mut self) -> Result<()> {
        self.calls.lock().unwrap().push("check");
        self.go.recv().expect("the test");
        self.check.clone()
    }
}

/// An engine with a model, turned by hand.
struct Rig {
    engine: Engine,
    handle: EngineHandle,
    script: Shared,
    clock: Arc<TestClock>,
}

impl Rig {
    fn with_headroom(mib: i64) -> Self {
        let (script, clock) = (Shared::default(), Arc::new(TestClock::default()));
        let old = source(
            info(capabilities()),
            Arc::clone(&script),
            Arc::clone(&clock),
        );
        let (engine, handle) = Engine::new(
            Config::default(),
            Box::new(old),
            Arc::clone(&clock) as Arc<_>,
        );
        let mut engine = engine.governed_by(Box::new(Governor(Margin(mib << 20))));
        engine.turn();
        Self {
            engine,
            handle,
            script,
            clock,
        }
    }

    /// Another model, which takes `mib`.
    fn new_model(&self, mib: u64) -> (New, Sender<()>, Calls) {
        let info = ModelInfo {
            id: "new".into(),
            digest: "new".into(),
            ..info(capabilities())
        };
        let load = source(info, Arc::clone(&self.script), Arc::clone(&self.clock));
        let (sender, go) = channel();
        let calls = Calls::default();
        let new = New {
            calls: Arc::clone(&calls),
            go,
            size: Some(Bytes::mib(mib)),
            check: Ok(()),
            load: Box::new(load),
        };
        (new, sender, calls)
    }

    fn reload(&self, new: New) -> Receiver<Result<Reloaded>> {
        let (sender, receiver) = channel();
        let done = move |outcome| sender.send(outcome).expect("the test");
        self.handle.reload(Box::new(new), Box::new(done));
        receiver
    }

    fn ask(&self) -> Request {
        let mut request = generate(&context(&ids(1, 5), 0), 1, 20, 1);
        request.epoch = self.handle.model().expect("a model").epoch;
        request
    }

    fn answer(&mut self) -> Answer {
        let ticket = self.handle.submit(self.ask()).expect("accepted");
        while self.engine.turn() == Turn::Worked {
            self.clock.advance(Duration::from_millis(1));
        }
        Answer::of(ticket)
    }

    fn model(&self) -> String {
        self.handle.model().expect("a model").id.clone()
    }

    /// Turns until something comes out.
    fn wait<T>(&mut self, receiver: &Receiver<T>) -> T {
        for _ in 0..PATIENCE {
            self.engine.turn();
            match receiver.try_recv() {
                Ok(value) => return value,
                Err(TryRecvError::Empty) => std::thread::sleep(Duration::from_millis(1)),
                Err(gone) => panic!("{gone}"),
            }
        }
        panic!("nothing came");
    }
}

fn broken() -> Error {
    Error::Load {
        reason: "self-test: prompt 0 is off by 9".into(),
    }
}

#[test]
fn the_old_model_serves_until_the_new_one_has_passed_its_test() {
    let mut rig = Rig::with_headroom(1000);
    let (new, go, calls) = rig.new_model(100);
    let done = rig.reload(new);
    for _ in 0..3 {
        rig.answer().finished();
        assert_eq!(rig.handle.status().phase, Phase::Ready);
        assert_eq!(rig.model(), "fake");
    }
    assert!(done.try_recv().is_err());
    go.send(()).unwrap();
    let reloaded = rig.wait(&done).expect("a good model");
    assert!(reloaded.old_served);
    assert_eq!(
        (reloaded.model.id.as_str(), rig.model().as_str()),
        ("new", "new")
    );
    assert_eq!(*calls.lock().unwrap(), ["load"]);
    rig.answer().finished();
}

#[test]
fn what_runs_is_finished_by_the_old_model_and_what_waits_for_another_model_is_told() {
    let mut rig = Rig::with_headroom(1000);
    let running = rig.handle.submit(rig.ask()).unwrap();
    rig.engine.turn();
    rig.engine.turn();
    let (new, go, _) = rig.new_model(100);
    go.send(()).unwrap();
    let done = rig.reload(new);
    let late: Vec<Ticket> = (0..2)
        .map(|_| rig.handle.submit(rig.ask()).unwrap())
        .collect();
    rig.wait(&done).expect("a good model");
    Answer::of(running).finished();
    rig.answer().finished();
    for ticket in late {
        // Either it began before the new model came, or it cannot be asked of that one.
        match Answer::of(ticket).end {
            Some(Err(error)) => assert_eq!(error, Error::ModelChanged),
            end => assert!(end.is_some()),
        }
    }
}

#[test]
fn a_bad_new_model_changes_nothing_and_the_old_one_is_never_gone() {
    let mut rig = Rig::with_headroom(1000);
    let epoch = rig.handle.model().unwrap().epoch;
    let (mut new, go, _) = rig.new_model(100);
    new.load = Box::new(|| Err(broken()));
    go.send(()).unwrap();
    let done = rig.reload(new);
    assert_eq!(rig.wait(&done).unwrap_err(), broken());
    let (mut new, go, _) = rig.new_model(100);
    new.load = Box::new(|| panic!("a broken runtime"));
    go.send(()).unwrap();
    let done = rig.reload(new);
    assert_eq!(rig.wait(&done).unwrap_err().code(), "load_failed");
    rig.answer().finished();
    // The very same loading of the old model.
    assert_eq!(rig.handle.model().unwrap().epoch, epoch);
    assert_eq!(rig.script.lock().unwrap().loads, 1);
}

#[test]
fn without_memory_for_two_the_new_one_is_checked_before_the_old_one_goes() {
    let mut rig = Rig::with_headroom(50);
    let (mut new, go, calls) = rig.new_model(100);
    new.check = Err(Error::Load {
        reason: "model.onnx.data: has another hash".into(),
    });
    let done = rig.reload(new);
    rig.answer().finished();
    go.send(()).unwrap();
    assert!(rig.wait(&done).is_err());
    assert_eq!(*calls.lock().unwrap(), ["check"]);
    assert_eq!(rig.script.lock().unwrap().loads, 1, "the old one stayed");
    rig.answer().finished();

    let (new, go, calls) = rig.new_model(100);
    go.send(()).unwrap();
    go.send(()).unwrap();
    let done = rig.reload(new);
    let reloaded = rig.wait(&done).expect("a good model");
    assert!(!reloaded.old_served);
    assert_eq!(*calls.lock().unwrap(), ["check", "load"]);
    assert_eq!(rig.model(), "new");

    // A model of unknown size is not loaded beside another either.
    let (mut new, go, calls) = rig.new_model(1);
    new.size = None;
    go.send(()).unwrap();
    go.send(()).unwrap();
    let done = rig.reload(new);
    assert!(!rig.wait(&done).expect("a good model").old_served);
    assert_eq!(*calls.lock().unwrap(), ["check", "load"]);
}

#[test]
fn the_end_does_not_wait_for_a_model_that_is_on_its_way() {
    let mut rig = Rig::with_headroom(1000);
    let (new, go, _) = rig.new_model(100);
    let first = rig.reload(new);
    rig.engine.turn();
    let (next, _go, calls) = rig.new_model(100);
    let second = rig.reload(next);
    let (sender, stopped) = channel();
    let drain = Drain::For(Duration::from_secs(60));
    let done = move |outcome: Result<()>| sender.send(outcome.is_ok()).unwrap();
    rig.handle.shutdown(drain, Box::new(done));
    assert!(rig.wait(&stopped));
    assert_eq!(first.recv().unwrap().unwrap_err(), Error::ShuttingDown);
    assert_eq!(second.recv().unwrap().unwrap_err(), Error::ShuttingDown);
    assert!(calls.lock().unwrap().is_empty());
    drop(go);
}

#[test]
fn at_the_end_what_runs_is_answered_and_what_waits_is_told_at_once() {
    let config = Config {
        sequences: 1,
        ..Config::default()
    };
    let mut rig = support::Rig::new(config, capabilities());
    let ask = |seed| generate(&context(&ids(seed, 5), 0), 1, 20, seed);
    let running = rig.submit(ask(1));
    rig.turns(2);
    let waiting = rig.submit(ask(2));
    let drain = Drain::For(Duration::from_secs(60));
    rig.handle.shutdown(drain, Box::new(|_| {}));
    rig.turns(1);
    // Told before the running one is done.
    assert_eq!(Answer::of(waiting).error(), &Error::ShuttingDown);
    assert_eq!(rig.handle.status().phase, Phase::Draining);
    while rig.engine.turn() != Turn::Stopped {}
    Answer::of(running).finished();
}
