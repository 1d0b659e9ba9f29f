//! Infilling: where blanks sit, in which order they are filled, and what form their answers have.

use glm::prompt::Order;
use glm::tokenizer::MaskKind;
use glm::{Position, TokenId};
use glm_engine::constraint::Grammar;
use glm_engine::ops::{Complete, Finish, Infill, Planned, Sampling, Terms};
use glm_engine::request::Work;

use crate::bench::{Bench, words};

#[test]
fn blanks_of_every_kind_are_filled_in_place() {
    let mut bench = Bench::new();
    let ask = Infill {
        sampling: Sampling {
            temperature: Some(1.0),
            seed: Some(7),
            ..Sampling::default()
        },
        n: 3,
        max_tokens: Some(6),
        ..Infill::new("w1 [MASK] w2 [sMASK]. [gMASK] ")
    };
    let Planned { request, reader } = bench.operations.infill(ask, Terms::default()).unwrap();
    let collected = bench.run(request);
    let result = reader.read(&collected);
    assert_eq!(result.choices.len(), 3);
    assert_ne!(result.choices[0], result.choices[1]);
    for choice in &result.choices {
        let kinds: Vec<MaskKind> = choice.blanks.iter().map(|b| b.kind).collect();
        let expected = [MaskKind::Span, MaskKind::Sentence, MaskKind::Document];
        assert_eq!(kinds, expected);
        let texts: Vec<&str> = choice.blanks.iter().map(|b| b.text.as_str()).collect();
        assert_eq!(
            choice.text,
            format!("w1 {} w2 {}. {} ", texts[0], texts[1], texts[2])
        );
        for blank in &choice.blanks {
            assert!((1..=6).contains(&blank.tokens), "{blank:?}");
            assert!(blank.logprob < 0.0, "{blank:?}");
            let length = blank.finish == Finish::Length;
            // An end token is counted and has no text.
            assert_eq!(words(&blank.text), blank.tokens - usize::from(!length));
            assert!(!length || blank.tokens == 6);
        }
    }
    // The same request again gives the same answer.
    let ask = Infill {
        sampling: Sampling {
            temperature: Some(1.0),
            seed: Some(7),
            ..Sampling::default()
        },
        max_tokens: Some(6),
        ..Infill::new("w1 [MASK] w2 [sMASK]. [gMASK] ")
    };
    let Planned { request, reader } = bench.operations.infill(ask, Terms::default()).unwrap();
    let collected = bench.run(request);
    assert_eq!(reader.read(&collected).choices[0], result.choices[0]);
}

#[test]
fn pieces_sit_where_their_masks_are() {
    let mut bench = Bench::new();
    let ask = Infill {
        max_tokens: Some(2),
        ..Infill::new("w1 [MASK] w2 [MASK].")
    };
    let Planned { request, reader } = bench.operations.infill(ask, Terms::default()).unwrap();
    bench.rig.steps();
    let collected = bench.run(request);
    let rows: Vec<_> = bench.rig.steps().into_iter().flatten().collect();
    // [CLS] w1 [MASK] w2 [MASK] . [PAD] and the start of the first piece.
    let part_a: Vec<(Position, u32)> = (0..7).map(|i| (Position::context(i), 7)).collect();
    let seen: Vec<_> = rows.iter().map(|r| (r.position, r.visible)).collect();
    assert_eq!(seen[..7], part_a);
    assert_eq!(seen[7], (Position::piece(2, 1), 8));
    let second: Vec<Position> = (rows.iter().map(|r| r.position))
        .filter(|p| p.second > 0 && p.first == 4)
        .collect();
    assert_eq!(second[0], Position::piece(4, 1));
    let result = reader.read(&collected);
    let sampled: usize = result.choices[0].blanks.iter().map(|b| b.tokens).sum();
    assert_eq!(result.usage.completion_tokens, sampled);
}

#[test]
fn the_splice_order_reads_the_text_anew() {
    let mut bench = Bench::new();
    let ask = Infill {
        max_tokens: Some(2),
        order: Order::Splice,
        ..Infill::new("w1 [MASK] w2 [MASK].")
    };
    let Planned { request, reader } = bench.operations.infill(ask, Terms::default()).unwrap();
    let collected = bench.run(request);
    let choice = &reader.read(&collected).choices[0];
    assert_eq!(choice.blanks.len(), 2);
    // The second context begins with the first answer in the text.
    let first = words(&choice.blanks[0].text);
    let rows: Vec<_> = bench.rig.steps().into_iter().flatten().collect();
    let start = rows
        .iter()
        .rposition(|r| r.position == Position::context(0));
    let again = &rows[start.unwrap()..];
    let ids: Vec<TokenId> = again[2..2 + first].iter().map(|r| r.id).collect();
    let tokenizer = &bench.operations.model().tokenizer;
    assert_eq!(tokenizer.decode(&ids), choice.blanks[0].text);
    let part_a = u32::try_from(6 + first).unwrap();
    assert_eq!(again[0].visible, part_a);
}

#[test]
fn a_stop_string_ends_its_blank_and_not_the_answer() {
    let mut bench = Bench::new();
    let plan = |bench: &Bench, stop: Vec<String>| {
        let ask = Infill {
            max_tokens: Some(4),
            sampling: Sampling {
                stop,
                ..Sampling::default()
            },
            ..Infill::new("[MASK] w2 [MASK]")
        };
        bench.operations.infill(ask, Terms::default()).unwrap()
    };
    let Planned { request, reader } = plan(&bench, vec![]);
    let collected = bench.run(request);
    let free = reader.read(&collected).choices.remove(0);
    let first = free.blanks[0].text.split(' ').next().unwrap().to_owned();
    let Planned { request, reader } = plan(&bench, vec![first]);
    let collected = bench.run(request);
    let stopped = reader.read(&collected).choices.remove(0);
    assert_eq!(stopped.blanks[0].text, "");
    assert_eq!(stopped.blanks[0].finish, Finish::Stop);
    assert!(stopped.blanks[1].tokens > 0);
}

#[test]
fn a_task_wraps_the_text() {
    let mut bench = Bench::new();
    let ask = Infill {
        task: Some("intent".into()),
        ..Infill::new(" w1 [MASK] w2 ")
    };
    let Planned { request, reader } = bench.operations.infill(ask, Terms::default()).unwrap();
    let Work::Generate(work) = &request.work else {
        panic!("it writes");
    };
    assert_eq!(work.max_tokens, 5);
    let collected = bench.run(request);
    let choice = &reader.read(&collected).choices[0];
    // The text's own marker is text.
    assert_eq!(choice.blanks.len(), 1);
    assert_eq!(
        choice.text,
        format!("w51 w1 [MASK] w2 {}", choice.blanks[0].text)
    );
}

#[test]
fn every_blank_has_the_form_that_is_asked_for() {
    let mut bench = Bench::new();
    let choices = ["w1 w2", "w3"].map(str::to_owned).to_vec();
    for seed in 0..4 {
        let ask = Infill {
            n: 2,
            sampling: Sampling {
                temperature: Some(5.0),
                seed: Some(seed),
                ..Sampling::default()
            },
            format: Some(Grammar::Choice(choices.clone())),
            ..Infill::new("w4 [MASK] w5 [MASK].")
        };
        let Planned { request, reader } = bench.operations.infill(ask, Terms::default()).unwrap();
        let collected = bench.run(request);
        for choice in reader.read(&collected).choices {
            for blank in &choice.blanks {
                assert!(choices.contains(&blank.text), "{blank:?}");
                assert_eq!(blank.finish, Finish::Stop);
                // What is reported is the model's own probability, which the form does not raise.
                assert!(blank.logprob < 0.0);
            }
        }
        let ask = Complete {
            format: Some(Grammar::Choice(choices.clone())),
            ..Complete::new("w4")
        };
        let Planned { request, reader } = bench.operations.complete(ask, Terms::default()).unwrap();
        let collected = bench.run(request);
        let result = reader.read(&collected);
        assert!(choices.contains(&result.choices[0].text));
    }
    // A task brings its own form; this vocabulary keeps no spaces and cannot write JSON.
    let ask = Infill {
        task: Some("form".into()),
        ..Infill::new("w1")
    };
    let error = bench.operations.infill(ask, Terms::default()).unwrap_err();
    assert_eq!(error.code(), "unsupported_operation");
}
