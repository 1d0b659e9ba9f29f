//! What becomes of a request: refused, replaced, cancelled, late, unlucky, or served in its turn. On a model without weights.
#![allow(
    clippy::tests_outside_test_module,
    reason = "an integration test is a test module"
)]

mod support;

use std::sync::Arc;
use std::task::{Context, Poll, Wake};
use std::time::Duration;

use glm::TokenId;
use glm_engine::engine::Turn;
use glm_engine::request::Work;
use glm_engine::status::Phase;
use glm_engine::units::Priority;
use glm_engine::{Config, Done, Drain, Engine, Error, Event, Ticket};

use support::{
    Answer, END, Rig, Shared, TestClock, capabilities, context, generate, ids, info, source,
};

#[test]
fn a_cancelled_request_is_in_no_further_step() {
    let mut rig = Rig::usual();
    let ticket = rig.submit(generate(&context(&ids(1, 10), 0), 1, 300, 1));
    let other = rig.submit(generate(&context(&ids(2, 10), 0), 1, 30, 2));
    rig.turns(3);
    rig.steps();
    assert!(rig.handle.cancel(ticket.id()));
    rig.run();
    // Only the other one runs from now on.
    assert!(rig.steps().iter().all(|rows| rows.len() == 1));
    assert_eq!(Answer::of(ticket).error(), &Error::Cancelled);
    Answer::of(other).finished();
}

#[test]
fn dropping_the_ticket_cancels_served_and_waiting_requests() {
    let mut rig = Rig::usual();
    drop(rig.submit(generate(&context(&ids(1, 10), 0), 1, 300, 1)));
    let running = rig.submit(generate(&context(&ids(1, 10), 0), 1, 300, 1));
    rig.turns(2);
    drop(running);
    rig.run();
    let status = rig.handle.status();
    assert_eq!(status.counters.cancelled, 2);
    assert_eq!(status.counters.sampled_tokens, 2);
    assert!(!rig.handle.cancel(glm_engine::units::RequestId(1)));
}

#[test]
fn a_newer_reading_replaces_the_one_that_waits() {
    let rig = Rig::usual();
    let keyed = |client: &str, seed| {
        let mut request = generate(&context(&ids(seed, 5), 0), 1, 2, seed);
        request.coalesce_key = Some("temperature".into());
        request.client = client.into();
        request
    };
    let first = rig.submit(keyed("a", 1));
    let other = rig.submit(keyed("b", 2));
    let second = rig.submit(keyed("a", 3));
    assert_eq!(Answer::of(first).error(), &Error::Superseded);
    let mut rig = rig;
    rig.run();
    Answer::of(other).finished();
    Answer::of(second).finished();
    assert_eq!(rig.handle.status().counters.superseded, 1);
}

#[test]
fn a_deadline_that_cannot_be_met_is_refused_at_the_start_and_stops_a_running_answer() {
    let mut rig = Rig::usual();
    rig.script.lock().unwrap().step_time = Duration::from_millis(100);
    // Teaches the engine what a step costs and how long answers are.
    rig.answer(generate(&context(&ids(1, 50), 0), 1, 20, 1));
    let timed = |max_tokens, time| {
        let mut request = generate(&context(&ids(9, 50), 0), 1, max_tokens, 3);
        request.deadline = Some(Duration::from_millis(time));
        request
    };
    rig.steps();
    let hopeless = rig.answer(timed(20, 150));
    assert_eq!(hopeless.error(), &Error::Deadline);
    assert!(rig.steps().is_empty(), "it never ran");
    // Long enough for the usual answer; this one is longer.
    let mut request = timed(400, 4_000);
    if let Work::Generate(g) = &mut request.work {
        g.sampling.banned = vec![END];
    }
    let stopped = rig.answer(request);
    assert_eq!(stopped.error(), &Error::Deadline);
    assert!(stopped.tokens[0].len() > 20);
}

#[test]
fn a_request_that_can_never_fit_is_refused_with_the_numbers() {
    let rig = Rig::usual();
    let refuse = |request| rig.handle.submit(request).unwrap_err();
    let long = refuse(generate(&context(&ids(1, 500), 0), 1, 100, 1));
    assert_eq!(
        long,
        Error::TooLarge {
            what: "positions (prompt and answer)",
            needed: 600,
            limit: 512
        }
    );
    let wide = refuse(generate(&context(&ids(1, 100), 0), 30, 400, 1));
    assert_eq!(wide.code(), "too_large");
    let whole = refuse(generate(&context(&ids(1, 400), 300), 1, 10, 1));
    assert_eq!(whole.code(), "too_large");
    let empty = refuse(generate(&context(&[], 0), 1, 10, 1));
    assert_eq!(empty.code(), "bad_input");
    assert_eq!(rig.handle.status().counters.refused, 4);
}

#[test]
fn a_full_queue_says_when_to_come_back() {
    let mut config = Config::default();
    config.queue.requests = 2;
    let rig = Rig::new(config, capabilities());
    let _first = rig.submit(generate(&context(&ids(1, 5), 0), 1, 2, 1));
    let _second = rig.submit(generate(&context(&ids(1, 5), 0), 1, 2, 1));
    let refused = rig
        .handle
        .submit(generate(&context(&ids(1, 5), 0), 1, 2, 1));
    let error = refused.unwrap_err();
    assert_eq!(error.code(), "overloaded");
    assert!(error.retry_after().unwrap() >= Duration::from_millis(250));
}

#[test]
fn a_failed_step_is_repeated_and_changes_nothing() {
    let mut rig = Rig::usual();
    let prompts: Vec<_> = (0..4).map(|seed| context(&ids(seed, 30), 0)).collect();
    let calm: Vec<Answer> = (prompts.iter())
        .map(|prompt| Rig::usual().answer(generate(prompt, 2, 20, 9)))
        .collect();
    let tickets: Vec<Ticket> = (prompts.iter())
        .map(|prompt| rig.submit(generate(prompt, 2, 20, 9)))
        .collect();
    for _ in 0..8 {
        rig.script.lock().unwrap().fail_steps = 1;
        rig.turns(6);
    }
    rig.run();
    for (ticket, calm) in tickets.into_iter().zip(calm) {
        assert_eq!(Answer::of(ticket).tokens, calm.tokens);
    }
    assert_eq!(rig.handle.status().counters.failed, 0);
    assert!(rig.handle.status().counters.failed_steps >= 4);
}

#[test]
fn only_the_request_at_fault_fails() {
    for panics in [false, true] {
        let mut rig = Rig::usual();
        {
            let mut script = rig.script.lock().unwrap();
            *(match panics {
                true => &mut script.panic_on,
                false => &mut script.poison,
            }) = Some(TokenId(62));
        }
        let mut good = generate(&context(&ids(1, 30), 0), 1, 20, 9);
        if let Work::Generate(g) = &mut good.work {
            g.sampling.banned = vec![TokenId(62)];
        }
        let good = rig.submit(good);
        let mut poisoned = ids(2, 30);
        poisoned[7] = 62;
        let bad = rig.submit(generate(&context(&poisoned, 0), 1, 20, 9));
        rig.run();
        let code = Answer::of(bad).error().code();
        match panics {
            true => assert_eq!(code, "backend_panicked"),
            false => assert_eq!(code, "backend_failed"),
        }
        assert!(Answer::of(good).finished().usage.completion_tokens > 0);
        // And the engine still serves.
        rig.answer(generate(&context(&ids(5, 30), 0), 1, 1, 9))
            .finished();
        let loads = rig.script.lock().unwrap().loads;
        assert_eq!(loads, if panics { 3 } else { 1 });
    }
}

#[test]
fn urgent_requests_go_first_and_old_ones_are_not_starved() {
    let mut config = Config {
        sequences: 1,
        ..Config::default()
    };
    config.queue.ageing = Duration::from_secs(10);
    let mut rig = Rig::new(config, capabilities());
    let with = |priority| {
        let mut request = generate(&context(&ids(1, 5), 0), 1, 1, 1);
        request.priority = priority;
        request
    };
    let mut tickets = vec![("low", rig.submit(with(Priority::Low)))];
    tickets.push(("normal", rig.submit(with(Priority::Normal))));
    rig.clock.advance(Duration::from_secs(15));
    tickets.push(("high", rig.submit(with(Priority::High))));
    rig.clock.advance(Duration::from_secs(6));
    // 21 s after the low one, which has made up for its handicap of 20 s.
    tickets.push(("late", rig.submit(with(Priority::High))));
    let mut order = Vec::new();
    while tickets.len() > order.len() {
        rig.turns(1);
        for (name, ticket) in &mut tickets {
            while let Some(event) = ticket.try_next() {
                if event.is_last() {
                    order.push(*name);
                }
            }
        }
    }
    assert_eq!(order, ["normal", "high", "low", "late"]);
}

#[test]
fn unread_answers_are_joined_and_a_reader_too_far_behind_is_cancelled() {
    let config = Config {
        unread_tokens: glm::Tokens(10),
        ..Config::default()
    };
    let mut rig = Rig::new(config, capabilities());
    let mut request = generate(&context(&ids(1, 5), 0), 1, 50, 1);
    if let Work::Generate(g) = &mut request.work {
        g.sampling.banned = vec![END];
    }
    let mut ticket = rig.submit(request);
    rig.run();
    let mut events = Vec::new();
    while let Some(event) = ticket.try_next() {
        events.push(event);
    }
    assert_eq!(events.len(), 3, "{events:?}");
    assert!(matches!(&events[1], Event::Part(part) if part.tokens.len() == 11));
    assert_eq!(events[2], Event::Failed(Error::SlowReader { unread: 11 }));
}

#[test]
fn shutdown_drains_or_fails_what_is_left_and_the_thread_ends() {
    for (drain, code) in [
        (Drain::For(Duration::from_secs(60)), None),
        (Drain::Now, Some("shutting_down")),
    ] {
        let mut rig = Rig::usual();
        let ticket = rig.submit(generate(&context(&ids(1, 5), 0), 1, 20, 1));
        rig.turns(2);
        rig.handle.shutdown(drain, Box::new(|_| {}));
        let refused = loop {
            rig.engine.turn();
            if let Err(error) = rig
                .handle
                .submit(generate(&context(&ids(1, 5), 0), 1, 2, 1))
            {
                break error;
            }
        };
        assert_eq!(refused, Error::ShuttingDown);
        while rig.engine.turn() != Turn::Stopped {}
        let answer = Answer::of(ticket);
        assert_eq!(answer.end.unwrap().err().map(|e| e.code()), code);
        assert_eq!(rig.handle.status().phase, Phase::Stopped);
    }
}

#[test]
fn unload_finishes_what_runs_and_reload_brings_the_model_back() {
    let mut rig = Rig::usual();
    let running = rig.submit(generate(&context(&ids(1, 5), 0), 1, 20, 1));
    rig.turns(2);
    let (sender, receiver) = std::sync::mpsc::channel();
    let done = |name: &'static str| -> Done<()> {
        let sender = sender.clone();
        Box::new(move |outcome| sender.send((name, outcome.is_ok())).unwrap())
    };
    rig.handle.unload(done("unload"));
    rig.turns(1);
    let waiting = rig.submit(generate(&context(&ids(2, 5), 0), 1, 20, 1));
    rig.run();
    rig.run();
    Answer::of(running).finished();
    assert_eq!(Answer::of(waiting).error().code(), "model_not_loaded");
    assert_eq!(rig.handle.status().phase, Phase::Unloaded);
    let refused = rig
        .handle
        .submit(generate(&context(&ids(1, 5), 0), 1, 2, 1));
    assert_eq!(refused.unwrap_err().code(), "model_not_loaded");

    let broken = || -> glm_engine::Result<glm_engine::model::Model> {
        Err(Error::Load {
            reason: "model.onnx: no such file".into(),
        })
    };
    let reloaded = done("reload");
    rig.handle.reload(
        Box::new(broken),
        Box::new(move |outcome| reloaded(outcome.map(|_| ()))),
    );
    rig.run();
    // The new model is no good, so the old one is back.
    assert_eq!(rig.handle.status().phase, Phase::Ready);
    let told: Vec<_> = receiver.try_iter().collect();
    assert_eq!(told, [("unload", true), ("reload", false)]);
    let mut request = generate(&context(&ids(1, 5), 0), 1, 2, 1);
    request.epoch = rig.handle.model().unwrap().epoch;
    rig.answer(request).finished();
}

#[test]
fn the_thread_serves_blocking_and_asynchronous_readers() {
    let clock = Arc::new(TestClock::default());
    let source = source(info(capabilities()), Shared::default(), Arc::clone(&clock));
    let (engine, handle) = Engine::new(Config::default(), Box::new(source), clock);
    let thread = engine.spawn().unwrap();
    while handle.model().is_none() {
        std::thread::yield_now();
    }
    let ask = || generate(&context(&ids(1, 50), 0), 2, 9, 1);
    let blocking = handle.submit(ask()).unwrap().collect_blocking().unwrap();
    assert!(
        blocking
            .choices
            .iter()
            .all(|choice| choice.reason.is_some())
    );
    // And a reader that is woken by the engine's thread.
    let polled = wait_for(handle.submit(ask()).unwrap().collect()).unwrap();
    assert_eq!(polled.choices, blocking.choices);
    assert_eq!(polled.choices.len(), 2);
    handle.shutdown(Drain::Now, Box::new(|_| {}));
    thread.join().unwrap();
}

/// The smallest executor: sleeps until it is woken.
fn wait_for<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Arc::new(Unpark(std::thread::current())).into();
    let mut future = std::pin::pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => std::thread::park(),
        }
    }
}
