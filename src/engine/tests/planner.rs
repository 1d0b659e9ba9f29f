//! Promises of the pure deciders, whatever the snapshot.
#![allow(
    clippy::tests_outside_test_module,
    reason = "an integration test is a test module"
)]

use std::time::Duration;

use glm::Tokens;
use glm_engine::scheduler::queue::{CoalesceKey, Queue, QueueLimits, Waiting};
use glm_engine::scheduler::step::{Lane, Plan, Room, plan};
use glm_engine::units::{Moment, Priority, RequestId};
use proptest::prelude::*;

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: 512,
        // A failing case is printed in full; no file of seeds beside the tests.
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

fn lane() -> impl Strategy<Value = Lane> {
    (
        0..100usize,
        1..80usize,
        0..100usize,
        0..80usize,
        any::<bool>(),
        0..50u64,
    )
        .prop_map(
            |(done, pending, indivisible, quiet, shared_tail, last_step)| Lane {
                done,
                pending,
                // Most lanes can be divided; a Part A begins a sequence.
                indivisible: match indivisible {
                    whole if whole <= pending && done % 3 == 0 => whole,
                    _ => 0,
                },
                quiet: quiet.min(pending),
                shared_tail,
                last_step,
            },
        )
}

prop_compose! {
    fn room()(
        budget in 1..100usize,
        sequences in 1..20usize,
        reading in 1..64usize,
        spare in 0..64usize,
        blocks in 0..60usize,
        block_tokens in 1..33usize,
        reading_went_first: bool,
    ) -> Room {
        // Every sequence of a step may want a row of logits: the engine sees to that.
        let logits = sequences + spare;
        Room { budget, sequences, reading, logits, blocks, block_tokens, reading_went_first }
    }
}

fn new_blocks(lane: &Lane, tokens: usize, size: usize) -> usize {
    let copy = lane.shared_tail && !lane.done.is_multiple_of(size);
    (lane.done + tokens).div_ceil(size) - lane.done.div_ceil(size) + usize::from(copy)
}

fn tokens(plan: &Plan) -> usize {
    plan.runs.iter().map(|run| run.tokens).sum()
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_plan_keeps_to_its_room(lanes in prop::collection::vec(lane(), 0..24), room in room()) {
        let plan = plan(&lanes, &room);
        let mut seen = vec![false; lanes.len()];
        let (mut blocks, mut logits, mut whole) = (0, 0, 0);
        for run in &plan.runs {
            let lane = &lanes[run.lane];
            prop_assert!(!std::mem::replace(&mut seen[run.lane], true), "a lane runs once");
            prop_assert!(run.tokens >= 1 && run.tokens <= lane.pending);
            prop_assert!(run.tokens >= lane.indivisible, "Part A runs whole");
            blocks += new_blocks(lane, run.tokens, room.block_tokens);
            logits += run.tokens.saturating_sub(lane.quiet);
            whole = whole.max(lane.indivisible);
        }
        prop_assert!(blocks <= room.blocks);
        prop_assert!(plan.runs.len() <= room.sequences);
        prop_assert!(logits <= room.logits || whole > 1);
        let total = tokens(&plan);
        prop_assert_eq!(total, plan.reading + plan.writing);
        let alone = plan.runs.len() == 1 && total == whole;
        prop_assert!(total <= room.budget || alone, "{total} tokens");
        if plan.runs.is_empty() {
            prop_assert!(lanes.is_empty() || plan.short_of_blocks);
        }
    }

    #[test]
    fn every_lane_comes_to_its_end(
        lanes in prop::collection::vec(lane(), 1..24), room in room(),
    ) {
        let mut lanes = lanes;
        let mut room = Room { blocks: usize::MAX / 2, ..room };
        let total: usize = lanes.iter().map(|lane| lane.pending).sum();
        // Every step runs at least one token, so no step is wasted.
        for step in 1..=total as u64 {
            let live: Vec<usize> = (0..lanes.len()).filter(|i| lanes[*i].pending > 0).collect();
            let view: Vec<Lane> = live.iter().map(|i| lanes[*i]).collect();
            let plan = plan(&view, &room);
            prop_assert_eq!(plan.runs.is_empty(), view.is_empty());
            room.reading_went_first = plan.reading_first;
            for run in &plan.runs {
                let lane = &mut lanes[live[run.lane]];
                lane.done += run.tokens;
                lane.pending -= run.tokens;
                lane.indivisible = lane.indivisible.saturating_sub(run.tokens);
                lane.quiet = lane.quiet.saturating_sub(run.tokens);
                lane.last_step = step + 50;
            }
        }
        prop_assert!(lanes.iter().all(|lane| lane.pending == 0));
    }

    #[test]
    fn answers_keep_their_turn_while_prompts_are_read(
        writers in 1..16usize, prompts in prop::collection::vec((1..400usize, any::<bool>()), 1..6),
        budget in 24..100usize,
    ) {
        // Answers that never end, beside prompts of any length and kind.
        let mut lanes: Vec<Lane> = vec![
            Lane { done: 10, pending: 1, ..Lane::default() };
            writers
        ];
        lanes.extend(prompts.iter().map(|(pending, whole)| Lane {
            pending: *pending + 4,
            indivisible: if *whole { *pending } else { 0 },
            quiet: *pending + 3,
            ..Lane::default()
        }));
        let mut room = Room {
            budget, sequences: 32, reading: 16, logits: 64, blocks: usize::MAX / 2,
            block_tokens: 32, reading_went_first: false,
        };
        let reading: usize = lanes[writers..].iter().map(|lane| lane.pending).sum();
        for step in 1..=2 * reading as u64 {
            let live: Vec<usize> = (0..lanes.len()).filter(|i| lanes[*i].pending > 0).collect();
            let view: Vec<Lane> = live.iter().map(|i| lanes[*i]).collect();
            let plan = plan(&view, &room);
            room.reading_went_first = plan.reading_first;
            for run in &plan.runs {
                let index = live[run.lane];
                let lane = &mut lanes[index];
                lane.done += run.tokens;
                lane.last_step = step;
                if index >= writers {
                    lane.pending -= run.tokens;
                    lane.indivisible = lane.indivisible.saturating_sub(run.tokens);
                    lane.quiet = lane.quiet.saturating_sub(run.tokens);
                }
            }
            // No answer stands still for more than one step.
            prop_assert!(lanes[..writers].iter().all(|lane| lane.last_step + 2 > step));
        }
        prop_assert!(lanes[writers..].iter().all(|lane| lane.pending == 0), "all prompts are read");
    }

    #[test]
    fn nobody_waits_longer_than_the_handicap_for_those_who_come_later(
        arrivals in prop::collection::vec((0..60u64, 0..3usize, 1..50usize), 1..40),
    ) {
        let limits = QueueLimits {
            requests: 64,
            tokens: Tokens(100_000),
            ageing: Duration::from_secs(10),
        };
        let mut queue = Queue::new(limits);
        for (id, (second, priority, cost)) in (1u64..).zip(arrivals) {
            let waiting = waiting(id, second, priority, cost, None);
            prop_assert!(queue.push(waiting).is_ok());
        }
        let mut served: Vec<Waiting<()>> = Vec::new();
        let turns: Vec<_> = queue.iter().map(|(turn, _)| turn).collect();
        for turn in turns {
            served.extend(queue.take(turn));
        }
        prop_assert_eq!(queue.tokens(), Tokens(0));
        for (index, early) in served.iter().enumerate() {
            for late in &served[index + 1..] {
                let handicap = late.priority.handicap(limits.ageing);
                prop_assert!(early.submitted <= late.submitted.after(handicap));
            }
        }
    }

    #[test]
    fn a_queue_keeps_to_its_bounds(
        arrivals in prop::collection::vec((0..60u64, 0..3usize, 1..50usize, 0..6usize), 1..60),
    ) {
        let limits = QueueLimits {
            requests: 8,
            tokens: Tokens(120),
            ageing: Duration::from_secs(10),
        };
        let mut queue = Queue::new(limits);
        let mut inside = 0;
        for (id, (second, priority, cost, key)) in (1u64..).zip(arrivals) {
            let key = (key > 2).then(|| key.to_string());
            match queue.push(waiting(id, second, priority, cost, key.as_deref())) {
                Ok(None) => inside += 1,
                Ok(Some(older)) => prop_assert!(older.coalesce.is_some()),
                Err(refused) => prop_assert_eq!(refused.1.id, RequestId(id)),
            }
            prop_assert_eq!(queue.len(), inside);
            prop_assert!(queue.len() <= 8);
            prop_assert!(queue.tokens().0 <= 120);
            prop_assert_eq!(queue.iter().map(|(_, w)| w.cost.0).sum::<usize>(), queue.tokens().0);
            let mut keys: Vec<_> = queue.iter().filter_map(|(_, w)| w.coalesce.clone()).collect();
            let all = keys.len();
            keys.sort_by(|a, b| a.key.cmp(&b.key));
            keys.dedup();
            prop_assert_eq!(keys.len(), all, "a key waits once");
        }
    }
}

fn waiting(id: u64, second: u64, priority: usize, cost: usize, key: Option<&str>) -> Waiting<()> {
    Waiting {
        id: RequestId(id),
        cost: Tokens(cost),
        priority: [Priority::Low, Priority::Normal, Priority::High][priority],
        submitted: Moment(Duration::from_secs(second)),
        deadline: None,
        coalesce: key.map(|key| CoalesceKey {
            client: "sensor".into(),
            key: key.into(),
        }),
        payload: (),
    }
}
