//! What an owner of a request can rely on, shown on a model without weights.
#![allow(
    clippy::tests_outside_test_module,
    reason = "an integration test is a test module"
)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use glm::TokenId;
use glm_engine::answer::{Finished, Reason, Token};
use glm_engine::backend::Capabilities;
use glm_engine::engine::Turn;
use glm_engine::status::Phase;
use glm_engine::units::Priority;
use glm_engine::{Config, Done, Drain, Engine, EngineHandle, Error, Event, Request, Ticket};

use support::{END, Shared, TestClock, capabilities, context, generate, ids, score, source};

struct Bench {
    engine: Engine,
    handle: EngineHandle,
    script: Shared,
    clock: Arc<TestClock>,
}

impl Bench {
    fn new(config: Config, capabilities: Capabilities) -> Self {
        let script = Shared::default();
        let clock = Arc::new(TestClock::default());
        let source = source(capabilities, Arc::clone(&script), Arc::clone(&clock));
        let (mut engine, handle) =
            Engine::new(config, Box::new(source), Arc::clone(&clock) as Arc<_>);
        engine.turn();
        script.lock().unwrap().record = true;
        Self {
            engine,
            handle,
            script,
            clock,
        }
    }

    fn usual() -> Self {
        Self::new(Config::default(), capabilities())
    }

    fn submit(&self, request: Request) -> Ticket {
        self.handle.submit(request).unwrap()
    }

    /// Turns the engine until it has nothing to do.
    fn run(&mut self) {
        for _ in 0..100_000 {
            match self.engine.turn() {
                Turn::Worked => self.clock.advance(Duration::from_millis(1)),
                Turn::Idle(_) | Turn::Stopped => return,
            }
        }
        panic!("the engine does not come to rest");
    }

    fn turns(&mut self, count: usize) {
        for _ in 0..count {
            self.engine.turn();
        }
    }

    fn answer(&mut self, request: Request) -> Answer {
        let ticket = self.submit(request);
        self.run();
        Answer::of(ticket)
    }

    /// Rows of each step so far, and forgets them.
    fn steps(&self) -> Vec<Vec<glm_engine::backend::Row>> {
        std::mem::take(&mut self.script.lock().unwrap().steps)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let script = self.script.lock().unwrap_or_else(|p| p.into_inner());
        if !std::thread::panicking() {
            assert_eq!(script.violations, Vec::<String>::new());
        }
    }
}

/// All that came out of a ticket.
#[derive(Debug, Default, PartialEq)]
struct Answer {
    texts: Vec<String>,
    tokens: Vec<Vec<Token>>,
    reasons: Vec<Option<Reason>>,
    prompt: Vec<Token>,
    end: Option<Result<Finished, Error>>,
}

impl Answer {
    fn of(mut ticket: Ticket) -> Self {
        let mut answer = Self::default();
        while let Some(event) = ticket.try_next() {
            assert!(answer.end.is_none(), "{event:?} after the last event");
            match event {
                Event::Started { .. } => {}
                Event::Prompt(tokens) => answer.prompt = tokens,
                Event::Part(part) => {
                    answer.grow(part.choice);
                    answer.texts[part.choice].push_str(&part.text);
                    answer.tokens[part.choice].extend(part.tokens);
                }
                Event::ChoiceEnded { choice, reason } => {
                    answer.grow(choice);
                    assert_eq!(answer.reasons[choice].replace(reason), None);
                }
                Event::Finished(finished) => answer.end = Some(Ok(*finished)),
                Event::Failed(error) => answer.end = Some(Err(error)),
            }
        }
        answer
    }

    fn grow(&mut self, choice: usize) {
        let length = self.texts.len().max(choice + 1);
        self.texts.resize(length, String::new());
        self.tokens.resize(length, Vec::new());
        self.reasons.resize(length, None);
    }

    fn ids(&self, choice: usize) -> Vec<u32> {
        self.tokens[choice].iter().map(|t| t.id.0).collect()
    }

    fn finished(&self) -> &Finished {
        self.end.as_ref().unwrap().as_ref().unwrap()
    }

    fn error(&self) -> &Error {
        self.end.as_ref().unwrap().as_ref().unwrap_err()
    }
}

#[test]
fn an_answer_ends_where_the_model_ends_it_or_at_its_limit() {
    let mut bench = Bench::usual();
    let mut reasons = Vec::new();
    for seed in 0..30 {
        let answer = bench.answer(generate(&context(&ids(seed, 20), 0), 1, 40, seed));
        let ids = answer.ids(0);
        let reason = answer.reasons[0].unwrap();
        match reason {
            Reason::Complete => assert_eq!(ids.last(), Some(&END.0)),
            Reason::Length => assert_eq!(ids.len(), 40),
            Reason::Stop(_) => panic!("no stop string was given"),
        }
        let words: Vec<String> = (ids.iter().filter(|id| **id != END.0))
            .map(|id| format!("w{id}"))
            .collect();
        assert_eq!(answer.texts[0], words.join(" "));
        assert_eq!(answer.finished().usage.completion_tokens, ids.len());
        reasons.push(reason);
    }
    assert!(reasons.contains(&Reason::Complete) && reasons.contains(&Reason::Length));
}

#[test]
fn the_first_event_is_started_and_the_last_is_final() {
    let mut bench = Bench::usual();
    let mut ticket = bench.submit(generate(&context(&ids(1, 9), 0), 1, 5, 1));
    bench.run();
    assert!(matches!(ticket.try_next(), Some(Event::Started { .. })));
    let mut last = None;
    while let Some(event) = ticket.next_blocking() {
        last = Some(event);
    }
    assert!(matches!(last, Some(Event::Finished(_))));
    assert_eq!(ticket.next_blocking(), None);
}

#[test]
fn a_stop_string_across_tokens_ends_the_answer_and_is_not_sent() {
    let mut bench = Bench::usual();
    let prompt = context(&ids(5, 12), 0);
    let free = bench.answer(generate(&prompt, 1, 30, 5));
    let whole = free.ids(0);
    // The third and fourth word, with the border between them.
    let stop = format!("{} w{}", whole[2], whole[3]);
    let mut request = generate(&prompt, 1, 30, 5);
    if let glm_engine::request::Work::Generate(g) = &mut request.work {
        g.sampling.stop = vec![stop];
    }
    let stopped = bench.answer(request);
    assert_eq!(stopped.reasons[0], Some(Reason::Stop(0)));
    assert_eq!(stopped.texts[0], format!("w{} w{} w", whole[0], whole[1]));
    assert_eq!(stopped.ids(0), whole[..4]);
}

#[test]
fn answers_of_one_request_share_the_prompt_and_differ_by_seed() {
    let mut bench = Bench::usual();
    let prompt = context(&ids(3, 100), 0);
    let three = bench.answer(generate(&prompt, 3, 20, 40));
    let prompt_rows: usize = bench
        .steps()
        .iter()
        .flatten()
        .filter(|r| r.position.first < 100)
        .count();
    assert_eq!(prompt_rows, 100, "the prompt is computed once");
    for choice in 0..3 {
        let alone = bench.answer(generate(&prompt, 1, 20, 40 + choice as u64));
        assert_eq!(three.tokens[choice], alone.tokens[0]);
    }
    assert_ne!(three.ids(0), three.ids(1));
}

#[test]
fn a_repeated_prefix_is_not_computed_again() {
    let mut bench = Bench::usual();
    let first = ids(7, 100);
    let answer = bench.answer(generate(&context(&first, 0), 1, 4, 1));
    assert_eq!(answer.finished().usage.cached_tokens, 0);
    bench.steps();
    // The same beginning and another end: whole blocks of 8 are reused.
    let mut second = first[..61].to_vec();
    second.extend(ids(8, 20));
    let answer = bench.answer(generate(&context(&second, 0), 1, 4, 1));
    assert_eq!(answer.finished().usage.cached_tokens, 56);
    let rows: usize = bench.steps()[0].len();
    assert_eq!(rows, 81 - 56);
    // Exactly the result of an engine that never saw the prefix.
    let fresh = Bench::usual().answer(generate(&context(&second, 0), 1, 4, 1));
    assert_eq!(fresh.tokens, answer.tokens);
}

#[test]
fn a_bidirectional_prefix_runs_whole_and_is_reused_only_on_an_exact_match() {
    let mut bench = Bench::usual();
    let text = ids(9, 61);
    // 60 tokens of Part A and the start of a piece.
    let answer = bench.answer(generate(&context(&text, 60), 1, 4, 1));
    let first = &bench.steps()[0];
    assert!(first.iter().take(60).all(|row| row.visible == 60));
    let again = bench.answer(generate(&context(&text, 60), 1, 4, 1));
    assert_eq!(again.finished().usage.cached_tokens, 60);
    assert_eq!(again.tokens, answer.tokens);
    let mut other = text.clone();
    other[59] += 1;
    let other = bench.answer(generate(&context(&other, 60), 1, 4, 1));
    assert_eq!(other.finished().usage.cached_tokens, 0);
}

#[test]
fn a_part_a_that_exceeds_the_budget_runs_alone() {
    let config = Config {
        step_tokens: glm::Tokens(32),
        ..Config::default()
    };
    let mut bench = Bench::new(config, capabilities());
    let writers: Vec<Ticket> = (0..4)
        .map(|seed| bench.submit(generate(&context(&ids(seed, 10), 0), 1, 60, seed)))
        .collect();
    bench.turns(5);
    let long = bench.submit(generate(&context(&ids(50, 101), 100), 1, 4, 1));
    bench.run();
    let steps = bench.steps();
    let whole: Vec<usize> = (steps.iter().map(Vec::len))
        .filter(|rows| *rows > 32)
        .collect();
    assert_eq!(whole, [100]);
    Answer::of(long).finished();
    for writer in writers {
        Answer::of(writer).finished();
    }
}

#[test]
fn scores_are_the_log_probabilities_of_the_candidates() {
    let mut bench = Bench::usual();
    let prompts = [context(&ids(1, 20), 0), context(&ids(2, 31), 30)];
    let candidates = vec![vec![5], vec![6, 7, 8], vec![6, 9], vec![]];
    let items: Vec<_> = (prompts.iter())
        .map(|prompt| (Arc::clone(prompt), candidates.clone()))
        .collect();
    let scores = bench.answer(score(&items)).finished().scores.clone();
    for (prompt, scores) in prompts.iter().zip(&scores) {
        for (candidate, scores) in candidates.iter().zip(scores) {
            assert_eq!(scores.len(), candidate.len());
            // Each token's probability is what a sampler reports that is led along the candidate.
            for (at, score) in scores.iter().enumerate() {
                let mut read: Vec<u32> = prompt.tokens.iter().map(|t| t.id.0).collect();
                read.extend(&candidate[..at]);
                let part = context(&read, prompt.bidirectional);
                let mut request = generate(&part, 1, 1, 0);
                if let glm_engine::request::Work::Generate(g) = &mut request.work {
                    let all = (0..64).filter(|id| *id != candidate[at]).map(TokenId);
                    g.sampling.banned = all.collect();
                }
                let led = bench.answer(request);
                assert_eq!(led.ids(0), [candidate[at]]);
                assert_eq!(led.tokens[0][0].logprob, Some(*score));
            }
        }
    }
}

#[test]
fn many_texts_are_one_batch() {
    let mut bench = Bench::usual();
    let items: Vec<_> = (0..6)
        .map(|i| (context(&ids(i, 13), 12), vec![vec![1], vec![2]]))
        .collect();
    let answer = bench.answer(score(&items));
    assert_eq!(answer.finished().scores.len(), 6);
    assert_eq!(bench.steps().len(), 1);
}

#[test]
fn prompt_log_probabilities_are_those_of_scoring_the_prompt() {
    let mut bench = Bench::usual();
    let text = ids(4, 90);
    let mut request = generate(&context(&text, 0), 2, 3, 1);
    if let glm_engine::request::Work::Generate(g) = &mut request.work {
        g.prompt_logprobs = Some(2);
    }
    let answer = bench.answer(request);
    assert_eq!(answer.prompt.len(), 90);
    assert_eq!(answer.prompt[0].logprob, None);
    let scored = bench.answer(score(&[(context(&text[..1], 0), vec![text[1..].to_vec()])]));
    let wanted: Vec<Option<f64>> = scored.finished().scores[0][0]
        .iter()
        .copied()
        .map(Some)
        .collect();
    let got: Vec<Option<f64>> = answer.prompt[1..].iter().map(|t| t.logprob).collect();
    assert_eq!(got, wanted);
    assert!(answer.prompt[1..].iter().all(|t| t.top.len() == 2));
}

#[test]
fn a_cancelled_request_is_in_no_further_step() {
    let mut bench = Bench::usual();
    let ticket = bench.submit(generate(&context(&ids(1, 10), 0), 1, 300, 1));
    let other = bench.submit(generate(&context(&ids(2, 10), 0), 1, 30, 2));
    bench.turns(3);
    bench.steps();
    assert!(bench.handle.cancel(ticket.id()));
    bench.run();
    // Only the other one runs from now on.
    assert!(bench.steps().iter().all(|rows| rows.len() == 1));
    assert_eq!(Answer::of(ticket).error(), &Error::Cancelled);
    Answer::of(other).finished();
}

#[test]
fn dropping_the_ticket_cancels_served_and_waiting_requests() {
    let mut bench = Bench::usual();
    drop(bench.submit(generate(&context(&ids(1, 10), 0), 1, 300, 1)));
    let running = bench.submit(generate(&context(&ids(1, 10), 0), 1, 300, 1));
    bench.turns(2);
    drop(running);
    bench.run();
    let status = bench.handle.status();
    assert_eq!(status.counters.cancelled, 2);
    assert_eq!(status.counters.sampled_tokens, 2);
    assert!(!bench.handle.cancel(glm_engine::units::RequestId(1)));
}

#[test]
fn a_newer_reading_replaces_the_one_that_waits() {
    let bench = Bench::usual();
    let keyed = |client: &str, seed| {
        let mut request = generate(&context(&ids(seed, 5), 0), 1, 2, seed);
        request.coalesce_key = Some("temperature".into());
        request.client = client.into();
        request
    };
    let first = bench.submit(keyed("a", 1));
    let other = bench.submit(keyed("b", 2));
    let second = bench.submit(keyed("a", 3));
    assert_eq!(Answer::of(first).error(), &Error::Superseded);
    let mut bench = bench;
    bench.run();
    Answer::of(other).finished();
    Answer::of(second).finished();
    assert_eq!(bench.handle.status().counters.superseded, 1);
}

#[test]
fn a_deadline_that_cannot_be_met_is_refused_at_the_start_and_stops_a_running_answer() {
    let mut bench = Bench::usual();
    bench.script.lock().unwrap().step_time = Duration::from_millis(100);
    // Teaches the engine what a step costs and how long answers are.
    bench.answer(generate(&context(&ids(1, 50), 0), 1, 20, 1));
    let timed = |max_tokens, time| {
        let mut request = generate(&context(&ids(9, 50), 0), 1, max_tokens, 3);
        request.deadline = Some(Duration::from_millis(time));
        request
    };
    bench.steps();
    let hopeless = bench.answer(timed(20, 150));
    assert_eq!(hopeless.error(), &Error::Deadline);
    assert!(bench.steps().is_empty(), "it never ran");
    // Long enough for the usual answer; this one is longer.
    let mut request = timed(400, 4_000);
    if let glm_engine::request::Work::Generate(g) = &mut request.work {
        g.sampling.banned = vec![END];
    }
    let stopped = bench.answer(request);
    assert_eq!(stopped.error(), &Error::Deadline);
    assert!(stopped.tokens[0].len() > 20);
}

#[test]
fn a_request_that_can_never_fit_is_refused_with_the_numbers() {
    let bench = Bench::usual();
    let refuse = |request| bench.handle.submit(request).unwrap_err();
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
    assert_eq!(bench.handle.status().counters.refused, 4);
}

#[test]
fn a_full_queue_says_when_to_come_back() {
    let mut config = Config::default();
    config.queue.requests = 2;
    let bench = Bench::new(config, capabilities());
    let _first = bench.submit(generate(&context(&ids(1, 5), 0), 1, 2, 1));
    let _second = bench.submit(generate(&context(&ids(1, 5), 0), 1, 2, 1));
    let refused = bench
        .handle
        .submit(generate(&context(&ids(1, 5), 0), 1, 2, 1));
    let error = refused.unwrap_err();
    assert_eq!(error.code(), "overloaded");
    assert!(error.retry_after().unwrap() >= Duration::from_millis(250));
}

#[test]
fn a_failed_step_is_repeated_and_changes_nothing() {
    let mut bench = Bench::usual();
    let prompts: Vec<_> = (0..4).map(|seed| context(&ids(seed, 30), 0)).collect();
    let calm: Vec<Answer> = (prompts.iter())
        .map(|prompt| Bench::usual().answer(generate(prompt, 2, 20, 9)))
        .collect();
    let tickets: Vec<Ticket> = (prompts.iter())
        .map(|prompt| bench.submit(generate(prompt, 2, 20, 9)))
        .collect();
    for _ in 0..8 {
        bench.script.lock().unwrap().fail_steps = 1;
        bench.turns(6);
    }
    bench.run();
    for (ticket, calm) in tickets.into_iter().zip(calm) {
        assert_eq!(Answer::of(ticket).tokens, calm.tokens);
    }
    assert_eq!(bench.handle.status().counters.failed, 0);
    assert!(bench.handle.status().counters.failed_steps >= 4);
}

#[test]
fn only_the_request_at_fault_fails() {
    for panics in [false, true] {
        let mut bench = Bench::usual();
        {
            let mut script = bench.script.lock().unwrap();
            *(match panics {
                true => &mut script.panic_on,
                false => &mut script.poison,
            }) = Some(TokenId(62));
        }
        let mut good = generate(&context(&ids(1, 30), 0), 1, 20, 9);
        if let glm_engine::request::Work::Generate(g) = &mut good.work {
            g.sampling.banned = vec![TokenId(62)];
        }
        let good = bench.submit(good);
        let mut poisoned = ids(2, 30);
        poisoned[7] = 62;
        let bad = bench.submit(generate(&context(&poisoned, 0), 1, 20, 9));
        bench.run();
        let code = Answer::of(bad).error().code();
        match panics {
            true => assert_eq!(code, "backend_panicked"),
            false => assert_eq!(code, "backend_failed"),
        }
        assert!(Answer::of(good).finished().usage.completion_tokens > 0);
        // And the engine still serves.
        bench
            .answer(generate(&context(&ids(5, 30), 0), 1, 1, 9))
            .finished();
        let loads = bench.script.lock().unwrap().loads;
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
    let mut bench = Bench::new(config, capabilities());
    let with = |priority| {
        let mut request = generate(&context(&ids(1, 5), 0), 1, 1, 1);
        request.priority = priority;
        request
    };
    let mut tickets = vec![("low", bench.submit(with(Priority::Low)))];
    tickets.push(("normal", bench.submit(with(Priority::Normal))));
    bench.clock.advance(Duration::from_secs(15));
    tickets.push(("high", bench.submit(with(Priority::High))));
    bench.clock.advance(Duration::from_secs(6));
    // 21 s after the low one, which has made up for its handicap of 20 s.
    tickets.push(("late", bench.submit(with(Priority::High))));
    let mut order = Vec::new();
    while tickets.len() > order.len() {
        bench.turns(1);
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
    let mut bench = Bench::new(config, capabilities());
    let mut request = generate(&context(&ids(1, 5), 0), 1, 50, 1);
    if let glm_engine::request::Work::Generate(g) = &mut request.work {
        g.sampling.banned = vec![END];
    }
    let mut ticket = bench.submit(request);
    bench.run();
    let mut events = Vec::new();
    while let Some(event) = ticket.try_next() {
        events.push(event);
    }
    assert_eq!(events.len(), 3, "{events:?}");
    assert!(matches!(&events[1], Event::Part(part) if part.tokens.len() == 11));
    assert_eq!(events[2], Event::Failed(Error::SlowReader { unread: 11 }));
}

#[test]
fn without_chunks_and_sharing_the_answers_are_the_same() {
    let plain = Capabilities {
        chunked_prefill: false,
        fork: false,
        ..capabilities()
    };
    let requests = || {
        vec![
            generate(&context(&ids(1, 70), 0), 3, 20, 1),
            generate(&context(&ids(2, 41), 40), 2, 20, 2),
            score(&[(context(&ids(3, 20), 0), vec![vec![1, 2, 3], vec![4, 5]])]),
        ]
    };
    let mut paged = Bench::usual();
    let mut portable = Bench::new(Config::default(), plain);
    for (a, b) in requests().into_iter().zip(requests()) {
        let (a, b) = (paged.answer(a), portable.answer(b));
        assert_eq!(a.tokens, b.tokens);
        assert_eq!(a.finished().scores, b.finished().scores);
    }
}

#[test]
fn shutdown_drains_or_fails_what_is_left_and_the_thread_ends() {
    for (drain, code) in [
        (Drain::For(Duration::from_secs(60)), None),
        (Drain::Now, Some("shutting_down")),
    ] {
        let mut bench = Bench::usual();
        let ticket = bench.submit(generate(&context(&ids(1, 5), 0), 1, 20, 1));
        bench.turns(2);
        bench.handle.shutdown(drain, Box::new(|_| {}));
        let refused = loop {
            bench.engine.turn();
            if let Err(error) = bench
                .handle
                .submit(generate(&context(&ids(1, 5), 0), 1, 2, 1))
            {
                break error;
            }
        };
        assert_eq!(refused, Error::ShuttingDown);
        while bench.engine.turn() != Turn::Stopped {}
        let answer = Answer::of(ticket);
        assert_eq!(answer.end.unwrap().err().map(|e| e.code()), code);
        assert_eq!(bench.handle.status().phase, Phase::Stopped);
    }
}

#[test]
fn unload_finishes_what_runs_and_reload_brings_the_model_back() {
    let mut bench = Bench::usual();
    let running = bench.submit(generate(&context(&ids(1, 5), 0), 1, 20, 1));
    bench.turns(2);
    let (sender, receiver) = std::sync::mpsc::channel();
    let done = |name: &'static str| -> Done<()> {
        let sender = sender.clone();
        Box::new(move |outcome| sender.send((name, outcome.is_ok())).unwrap())
    };
    bench.handle.unload(done("unload"));
    bench.turns(1);
    let waiting = bench.submit(generate(&context(&ids(2, 5), 0), 1, 20, 1));
    bench.run();
    bench.run();
    Answer::of(running).finished();
    assert_eq!(Answer::of(waiting).error().code(), "model_not_loaded");
    assert_eq!(bench.handle.status().phase, Phase::Unloaded);
    let refused = bench
        .handle
        .submit(generate(&context(&ids(1, 5), 0), 1, 2, 1));
    assert_eq!(refused.unwrap_err().code(), "model_not_loaded");

    let broken = || -> glm_engine::Result<glm_engine::model::Model> {
        Err(Error::Load {
            reason: "model.onnx: no such file".into(),
        })
    };
    let reloaded = done("reload");
    bench.handle.reload(
        Box::new(broken),
        Box::new(move |outcome| reloaded(outcome.map(|_| ()))),
    );
    bench.run();
    // The new model is no good, so the old one is back.
    assert_eq!(bench.handle.status().phase, Phase::Ready);
    let told: Vec<_> = receiver.try_iter().collect();
    assert_eq!(told, [("unload", true), ("reload", false)]);
    let mut request = generate(&context(&ids(1, 5), 0), 1, 2, 1);
    request.epoch = bench.handle.model().unwrap().epoch;
    bench.answer(request).finished();
}

#[test]
fn the_thread_serves_a_blocking_reader() {
    let clock = Arc::new(TestClock::default());
    let source = source(capabilities(), Shared::default(), Arc::clone(&clock));
    let (handle, thread) = Engine::spawn(Config::default(), Box::new(source), clock).unwrap();
    while handle.model().is_none() {
        std::thread::yield_now();
    }
    let mut ticket = handle
        .submit(generate(&context(&ids(1, 50), 0), 2, 9, 1))
        .unwrap();
    let mut ended = 0;
    while let Some(event) = ticket.next_blocking() {
        ended += usize::from(matches!(event, Event::ChoiceEnded { .. }));
    }
    assert_eq!(ended, 2);
    handle.shutdown(Drain::Now, Box::new(|_| {}));
    thread.join().unwrap();
}
