//! Prompts against the ids and positions that implementations from outside were run with, and
//! against the definitions of GLM's paper written down naively.
#![allow(clippy::tests_outside_test_module)] // An integration test is a test module as a whole.

use std::path::Path;

use glm::prompt::{Filling, Fit, Layout, Order, Read, Truncation};
use glm::spec::{Hints, SpecialIds};
use glm::tokenizer::{MaskKind, Piece};
use glm::{Error, Family, ModelSpec, Placed, Position, Prompt, TokenId};
use proptest::prelude::*;

const ALL: Fit = Fit {
    limit: usize::MAX,
    truncation: Truncation::Refuse,
};

fn json(path: &str) -> serde_json::Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/fixtures/checkpoints")
        .join(path);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn id(n: u32) -> Option<TokenId> {
    Some(TokenId(n))
}

fn ids(numbers: impl IntoIterator<Item = u32>) -> Vec<TokenId> {
    numbers.into_iter().map(TokenId).collect()
}

/// The ids of the fixtures with a WordPiece vocabulary, which their configuration may leave to the tokenizer.
fn small_glm() -> SpecialIds {
    SpecialIds {
        pad: id(0),
        cls: id(2),
        part_a_end: id(0),
        mask: id(4),
        smask: id(243),
        gmask: id(242),
        sop: id(240),
        eop: id(241),
        eos: ids([0]),
        ..SpecialIds::default()
    }
}

fn spec(checkpoint: &str) -> ModelSpec {
    let hints = Hints::default();
    ModelSpec::from_config(&json(&format!("{checkpoint}/config.json")), &hints).unwrap()
}

fn glm() -> Layout {
    Layout::new(&spec("glm-post"), small_glm()).unwrap()
}

fn chatglm() -> Layout {
    let special = SpecialIds {
        mask: id(130_000),
        gmask: id(130_001),
        sop: id(130_004),
        eop: id(130_005),
        eos: ids([130_005]),
        ..SpecialIds::default()
    };
    Layout::new(&spec("chatglm-6b"), special).unwrap()
}

fn causal(checkpoint: &str, gmask: u32, sop: u32) -> Layout {
    let special = SpecialIds {
        gmask: id(gmask),
        sop: id(sop),
        eos: ids([2]),
        ..SpecialIds::default()
    };
    Layout::new(&spec(checkpoint), special).unwrap()
}

fn text(numbers: impl IntoIterator<Item = u32>) -> Piece {
    Piece::Text(ids(numbers))
}

/// The id is the vocabulary's; the layout knows the model's own.
fn mask(kind: MaskKind) -> Piece {
    Piece::Mask {
        kind,
        id: TokenId(9_999),
    }
}

fn rows(tokens: &[Placed]) -> (Vec<u32>, Vec<u32>, Vec<u32>) {
    (
        tokens.iter().map(|t| t.id.0).collect(),
        tokens.iter().map(|t| t.position.first).collect(),
        tokens.iter().map(|t| t.position.second).collect(),
    )
}

/// Feeds an answer and returns everything that the model read.
fn read(layout: &Layout, prompt: &Prompt, answer: &[u32], limits: &[usize]) -> Vec<Placed> {
    let mut filling = Filling::new(layout, prompt, limits, Order::Pieces);
    let mut tokens = prompt.tokens.clone();
    for sampled in answer {
        match filling.push(TokenId(*sampled)).unwrap() {
            Read::More(more) => tokens.extend(more),
            Read::Nothing => break,
            Read::Anew { .. } => panic!("pieces never start over"),
        }
    }
    tokens
}

// === Ids and positions from elsewhere ===

#[test]
fn two_blanks_are_read_as_the_reference_read_them() {
    let layout = glm();
    for checkpoint in ["glm-large", "glm-post"] {
        let golden = json(&format!("{checkpoint}/golden.json"));
        for case in golden["cases"].as_array().unwrap() {
            let numbers =
                |v: &serde_json::Value| -> Vec<u32> { serde_json::from_value(v.clone()).unwrap() };
            let expected = numbers(&case["input_ids"]);
            let part_a = usize::try_from(case["bidirectional"].as_u64().unwrap()).unwrap();
            if expected.len() == part_a {
                continue; // Part A alone, without a blank to fill.
            }
            // The reference's Part A, cut into text and masks.
            let mut pieces = Vec::new();
            for id in &expected[1..part_a - 1] {
                pieces.push(match id {
                    4 => mask(MaskKind::Span),
                    id => text([*id]),
                });
            }
            let prompt = layout.infill(&pieces, ALL).unwrap();
            assert_eq!(prompt.bidirectional, part_a);
            // Its Part B: the end of a piece stands where the next one begins.
            let mut answer: Vec<u32> = expected[part_a + 1..].to_vec();
            for sampled in &mut answer {
                if *sampled == 240 {
                    *sampled = 241;
                }
            }
            let tokens = read(&layout, &prompt, &answer, &[99]);
            let (ids, first, second) = rows(&tokens);
            assert_eq!(ids, expected, "{checkpoint}: {}", case["name"]);
            assert_eq!(first, numbers(&case["position_ids"][0]));
            assert_eq!(second, numbers(&case["position_ids"][1]));
        }
    }
}

#[test]
fn blanks_are_laid_out_as_in_training() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/blanks.json");
    let golden: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let layout = glm();
    let cases = golden["cases"].as_array().unwrap();
    assert!(cases.len() >= 6);
    for case in cases {
        let name = &case["name"];
        let list = |key: &str| -> Vec<u32> { serde_json::from_value(case[key].clone()).unwrap() };
        let pieces: Vec<Piece> = (case["part_a"].as_str().unwrap().split(['[', ']']))
            .filter(|part| !part.trim().is_empty())
            .map(|part| match MaskKind::of(&format!("[{part}]")) {
                Some(kind) => mask(kind),
                None => text(part.split(' ').map(|id| id.parse().unwrap())),
            })
            .collect();
        let answers: Vec<Vec<u32>> = serde_json::from_value(case["pieces"].clone()).unwrap();
        let prompt = layout.infill(&pieces, ALL).unwrap();
        assert_eq!(prompt.blanks.len(), answers.len(), "{name}");
        assert_eq!(case["bidirectional"], prompt.bidirectional, "{name}");
        let mut ended = Vec::new();
        for answer in &answers {
            ended.extend(answer);
            ended.push(241);
        }
        let tokens = read(&layout, &prompt, &ended, &[99]);
        // Training shuffles the pieces; where a piece sits does not depend on when it is written.
        let mut written: Vec<&[Placed]> = Vec::new();
        let mut rest = &tokens[prompt.bidirectional..];
        for answer in &answers {
            let (piece, after) = rest.split_at(answer.len() + 1);
            written.push(piece);
            rest = after;
        }
        let mut shuffled = tokens[..prompt.bidirectional].to_vec();
        for index in list("order") {
            shuffled.extend(written[index as usize]);
        }
        let (ids, first, second) = rows(&shuffled);
        assert_eq!(ids, list("ids"), "{name}");
        assert_eq!(first, list("pos0"), "{name}");
        assert_eq!(second, list("pos1"), "{name}");
        for (row, seen) in case["visible"].as_array().unwrap().iter().enumerate() {
            let seen = seen.as_str().unwrap();
            let expected =
                "1".repeat(prompt.visible(row)) + &"0".repeat(ids.len() - prompt.visible(row));
            assert_eq!(seen, expected, "{name}: row {row}");
        }
    }
}

#[test]
fn chatglm_reads_its_context_whole() {
    // chatglm.cpp: ids 0 1 2 3 4 with a context of 2, of which the last is the mask.
    let layout = chatglm();
    let prompt = layout.complete(ids([0]), ALL).unwrap();
    let tokens = read(&layout, &prompt, &[3, 4], &[9]);
    let (ids_read, first, second) = rows(&tokens);
    assert_eq!(ids_read, [0, 130_001, 130_004, 3, 4]);
    assert_eq!(first, [0, 1, 1, 1, 1]);
    assert_eq!(second, [0, 0, 1, 2, 3]);
    assert_eq!(prompt.bidirectional, 2);

    let golden = json("chatglm-6b/golden.json");
    for case in golden["cases"].as_array().unwrap() {
        let first: Vec<u32> = serde_json::from_value(case["position_ids"][0].clone()).unwrap();
        let second: Vec<u32> = serde_json::from_value(case["position_ids"][1].clone()).unwrap();
        let context = usize::try_from(case["bidirectional"].as_u64().unwrap()).unwrap();
        if first.len() == context {
            continue;
        }
        // The mask may stand anywhere in the context; pieces sit at it.
        let at = first[context] as usize;
        let pieces: Vec<Piece> = (0..context)
            .map(|i| match i == at {
                true => mask(MaskKind::Span),
                false => text([7]),
            })
            .collect();
        let prompt = layout.infill(&pieces, ALL).unwrap();
        let tokens = read(&layout, &prompt, &vec![8; first.len() - context - 1], &[99]);
        let (_, got_first, got_second) = rows(&tokens);
        assert_eq!((got_first, got_second), (first, second), "{}", case["name"]);
    }
}

#[test]
fn chinese_greetings_have_the_published_ids() {
    let prompt = chatglm().complete(ids([5, 74_874]), ALL).unwrap();
    assert_eq!(
        prompt.ids().map(|i| i.0).collect::<Vec<_>>(),
        [5, 74_874, 130_001, 130_004]
    );
    for (checkpoint, gmask, sop) in [("chatglm2", 64_790, 64_792), ("chatglm3", 64_790, 64_792)] {
        let prompt = causal(checkpoint, gmask, sop)
            .complete(ids([36_474, 54_591]), ALL)
            .unwrap();
        let (got, first, second) = rows(&prompt.tokens);
        assert_eq!(got, [64_790, 64_792, 36_474, 54_591]);
        assert_eq!((first, second), (vec![0, 1, 2, 3], vec![0; 4]));
    }
    for checkpoint in ["glm4-old", "glm4-hf", "glm4-0414"] {
        let prompt = causal(checkpoint, 151_331, 151_333)
            .complete(ids([109_377]), ALL)
            .unwrap();
        assert_eq!(rows(&prompt.tokens).0, [151_331, 151_333, 109_377]);
    }
    let edge = causal("glm-edge", 1, 2).complete(ids([7]), ALL).unwrap();
    assert_eq!(rows(&edge.tokens).0, [7]);
}

// === Worked examples ===

#[test]
fn the_worked_example_of_the_released_code() {
    let layout = glm();
    let pieces = [text([10, 11]), mask(MaskKind::Span), text([12])];
    let prompt = layout.infill(&pieces, ALL).unwrap();
    let tokens = read(&layout, &prompt, &[20, 21], &[9]);
    let (got, first, second) = rows(&tokens);
    assert_eq!(got, [2, 10, 11, 4, 12, 0, 240, 20, 21]);
    assert_eq!(first, [0, 1, 2, 3, 4, 5, 3, 3, 3]);
    assert_eq!(second, [0, 0, 0, 0, 0, 0, 1, 2, 3]);
    assert_eq!(prompt.bidirectional, 6);
}

#[test]
fn a_document_mask_at_the_end_leaves_part_a_open() {
    let layout = glm();
    for (pieces, expected) in [
        (
            vec![text([10]), mask(MaskKind::Document)],
            vec![2, 10, 242, 240],
        ),
        (
            vec![text([10]), mask(MaskKind::Sentence)],
            vec![2, 10, 243, 0, 240],
        ),
        (
            vec![mask(MaskKind::Document), text([10])],
            vec![2, 242, 10, 0, 240],
        ),
        (
            vec![mask(MaskKind::Document), text([10]), mask(MaskKind::Span)],
            vec![2, 242, 10, 4, 0, 240],
        ),
    ] {
        let prompt = layout.infill(&pieces, ALL).unwrap();
        assert_eq!(rows(&prompt.tokens).0, expected);
    }
    let prompt = layout.complete(ids([10]), ALL).unwrap();
    assert_eq!(rows(&prompt.tokens).0, [2, 10, 242, 240]);
    let bert = SpecialIds {
        gmask: None,
        smask: None,
        ..small_glm()
    };
    let layout = Layout::new(&spec("glm-post"), bert).unwrap();
    let prompt = layout.complete(ids([10]), ALL).unwrap();
    assert_eq!(rows(&prompt.tokens).0, [2, 10, 4, 0, 240]);
}

#[test]
fn later_pieces_follow_earlier_ones_and_the_end_is_never_read() {
    let layout = glm();
    let pieces = [
        mask(MaskKind::Span),
        text([10]),
        mask(MaskKind::Sentence),
        mask(MaskKind::Document),
    ];
    let prompt = layout.infill(&pieces, ALL).unwrap();
    // The first piece ends by eop, the second is empty, the third is cut at two tokens.
    let tokens = read(&layout, &prompt, &[20, 241, 241, 30, 31, 32], &[9, 9, 2]);
    let (got, first, second) = rows(&tokens[prompt.bidirectional..]);
    assert_eq!(got, [240, 20, 240, 240, 30]);
    assert_eq!(first, [1, 1, 3, 4, 4]);
    assert_eq!(second, [1, 2, 1, 1, 2]);
    // A piece that is cut short is read to its last token before the next begins.
    let tokens = read(&layout, &prompt, &[20, 21, 30], &[2]);
    let (got, _, second) = rows(&tokens[prompt.bidirectional..]);
    assert_eq!(got, [240, 20, 21, 240, 30]);
    assert_eq!(second, [1, 2, 3, 1, 2]);
}

#[test]
fn spliced_answers_take_the_place_of_their_masks() {
    let layout = glm();
    let pieces = [mask(MaskKind::Span), text([10]), mask(MaskKind::Span)];
    let prompt = layout.infill(&pieces, ALL).unwrap();
    let mut filling = Filling::new(&layout, &prompt, &[9], Order::Splice);
    assert!(filling.restarts());
    assert!(matches!(filling.push(TokenId(20)).unwrap(), Read::More(_)));
    assert!(matches!(filling.push(TokenId(21)).unwrap(), Read::More(_)));
    let Read::Anew {
        tokens,
        bidirectional,
    } = filling.push(TokenId(241)).unwrap()
    else {
        panic!("the text is read anew");
    };
    let (got, first, second) = rows(&tokens);
    assert_eq!(got, [2, 20, 21, 10, 4, 0, 240]);
    assert_eq!(first, [0, 1, 2, 3, 4, 5, 4]);
    assert_eq!(second, [0, 0, 0, 0, 0, 0, 1]);
    assert_eq!((bidirectional, filling.blank()), (6, 1));
    let Read::More(more) = filling.push(TokenId(30)).unwrap() else {
        panic!("it goes on");
    };
    assert_eq!(more[0].position, Position::piece(4, 2));
    assert_eq!(filling.push(TokenId(241)).unwrap(), Read::Nothing);
}

// === Refusals ===

#[test]
fn what_a_family_cannot_do_is_refused_by_name() {
    let error = causal("glm4-hf", 1, 2)
        .infill(&[mask(MaskKind::Span)], ALL)
        .unwrap_err();
    assert_eq!(error.code(), "unsupported_operation");
    assert!(error.to_string().contains("glm4"), "{error}");
    let error = chatglm()
        .infill(&[mask(MaskKind::Sentence)], ALL)
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "`text`: this model has no [sMASK]; it fills [MASK] or [gMASK]"
    );
    let error = glm().infill(&[text([10])], ALL).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`text`: has no blank; write [MASK], [sMASK] or [gMASK] where something is missing"
    );
    let incomplete = SpecialIds {
        sop: None,
        ..small_glm()
    };
    let error = Layout::new(&spec("glm-post"), incomplete).unwrap_err();
    assert!(error.to_string().contains("sop_token_id"), "{error}");
    assert!(causal("glm-edge", 1, 2).complete(vec![], ALL).is_err());
}

#[test]
fn a_cloze_of_a_causal_family_ends_in_its_blank() {
    let layout = causal("glm4-hf", 1, 2);
    let prompt = layout
        .cloze(&[text([10]), mask(MaskKind::Span)], ALL)
        .unwrap();
    assert_eq!(rows(&prompt.tokens).0, [1, 2, 10]);
    let after: Vec<Position> = prompt.continuation().take(2).collect();
    assert_eq!(after, [Position::context(3), Position::context(4)]);
    let error = layout
        .cloze(&[text([10]), mask(MaskKind::Span), text([11])], ALL)
        .unwrap_err();
    assert!(error.to_string().contains("put the blank last"), "{error}");
    for pieces in [vec![text([1])], vec![mask(MaskKind::Span); 2]] {
        let error = glm().cloze(&pieces, ALL).unwrap_err();
        assert!(error.to_string().contains("exactly one"), "{error}");
    }
}

// === Properties ===

fn pieces() -> impl Strategy<Value = Vec<Piece>> {
    let piece = prop_oneof![
        3 => prop::collection::vec(10u32..200, 1..12).prop_map(text),
        2 => prop::sample::select(MaskKind::ALL.to_vec()).prop_map(mask),
    ];
    prop::collection::vec(piece, 1..8).prop_filter("a blank", |p| {
        p.iter().any(|p| matches!(p, Piece::Mask { .. }))
    })
}

/// Section 2.1 written down naively: Part A with its masks, then one piece for each blank.
struct Naive {
    ids: Vec<u32>,
    first: Vec<usize>,
    second: Vec<usize>,
    part_a: usize,
}

fn naive(pieces: &[Piece], answers: &[Vec<u32>]) -> Naive {
    let mut ids = vec![2];
    let mut masks = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Text(text) => ids.extend(text.iter().map(|id| id.0)),
            Piece::Mask { kind, .. } => {
                masks.push(ids.len());
                ids.push(match kind {
                    MaskKind::Span => 4,
                    MaskKind::Sentence => 243,
                    MaskKind::Document => 242,
                });
            }
        }
    }
    if ids.last() != Some(&242) {
        ids.push(0);
    }
    let part_a = ids.len();
    let mut first: Vec<usize> = (0..part_a).collect();
    let mut second = vec![0; part_a];
    for (mask, answer) in masks.iter().zip(answers) {
        ids.push(240);
        ids.extend(answer);
        first.extend(vec![*mask; answer.len() + 1]);
        second.extend(1..=answer.len() + 1);
    }
    Naive {
        ids,
        first,
        second,
        part_a,
    }
}

proptest! {
    #[test]
    fn positions_and_visibility_are_those_of_the_paper(
        pieces in pieces(),
        answers in prop::collection::vec(prop::collection::vec(10u32..200, 0..6), 8),
    ) {
        let layout = glm();
        let blanks = pieces.iter().filter(|p| matches!(p, Piece::Mask { .. })).count();
        let answers = &answers[..blanks];
        let prompt = layout.infill(&pieces, ALL).unwrap();
        let mut sampled: Vec<u32> = Vec::new();
        for answer in answers {
            sampled.extend(answer);
            sampled.push(241);
        }
        let tokens = read(&layout, &prompt, &sampled, &[99]);
        let twin = naive(&pieces, answers);
        let (ids, first, second) = rows(&tokens);
        prop_assert_eq!(&ids, &twin.ids);
        prop_assert_eq!(first.iter().map(|p| *p as usize).collect::<Vec<_>>(), twin.first);
        prop_assert_eq!(second.iter().map(|p| *p as usize).collect::<Vec<_>>(), twin.second);
        // Who sees whom, as the released code's mask says it.
        for i in 0..ids.len() {
            for j in 0..ids.len() {
                let sees = j < twin.part_a || j <= i;
                // Part A never sees Part B: with i in A and j in B, j > i.
                prop_assert_eq!(j < prompt.visible(i), sees, "{} sees {}", i, j);
            }
        }
    }

    #[test]
    fn truncation_keeps_every_mask_and_the_frame(pieces in pieces(), limit in 1usize..60) {
        let layout = glm();
        let whole = layout.infill(&pieces, ALL).unwrap();
        let fit = Fit { limit, truncation: Truncation::Cut };
        match layout.infill(&pieces, fit) {
            Err(Error::TooLong { needed, limit: said, .. }) => {
                prop_assert_eq!((needed, said), (whole.tokens.len(), limit));
            }
            Err(other) => prop_assert!(false, "{}", other),
            Ok(cut) => {
                prop_assert!(cut.tokens.len() <= limit);
                prop_assert_eq!(cut.tokens.len() + cut.removed, whole.tokens.len());
                let kinds = |p: &Prompt| p.blanks.iter().map(|b| b.kind).collect::<Vec<_>>();
                prop_assert_eq!(kinds(&cut), kinds(&whole));
                for blank in &cut.blanks {
                    let there = cut.tokens[blank.mask as usize];
                    prop_assert!([4, 242, 243].contains(&there.id.0));
                    prop_assert_eq!(there.position, Position::context(blank.mask));
                }
                prop_assert_eq!(cut.tokens[0].id, TokenId(2));
                // What is left stood side by side before.
                let (ids, whole_ids) = (rows(&cut.tokens).0, rows(&whole.tokens).0);
                let inner = &ids[1..cut.bidirectional - usize::from(ids[cut.bidirectional - 1] == 0)];
                prop_assert!(inner.is_empty() || whole_ids.windows(inner.len()).any(|w| w == inner));
            }
        }
    }

    #[test]
    fn a_filling_reads_no_more_than_it_says(
        pieces in pieces(),
        sampled in prop::collection::vec(prop_oneof![4 => 10u32..200, 1 => Just(241u32)], 0..60),
        limits in prop::collection::vec(1usize..6, 1..8),
        splice in any::<bool>(),
    ) {
        let layout = glm();
        let prompt = layout.infill(&pieces, ALL).unwrap();
        let order = if splice { Order::Splice } else { Order::Pieces };
        let mut filling = Filling::new(&layout, &prompt, &limits, order);
        let overhead = filling.overhead();
        let mut length = prompt.tokens.len();
        let mut counts = vec![0usize; prompt.blanks.len()];
        for (taken, id) in sampled.iter().enumerate() {
            counts[filling.blank()] += 1;
            match filling.push(TokenId(*id)).unwrap() {
                Read::More(more) => length += more.len(),
                Read::Anew { tokens, bidirectional } => {
                    length = tokens.len();
                    prop_assert_eq!(bidirectional + 1, tokens.len());
                }
                Read::Nothing => {
                    prop_assert_eq!(filling.blank() + 1, prompt.blanks.len());
                    break;
                }
            }
            prop_assert!(length <= prompt.tokens.len() + taken + 1 + overhead);
        }
        for (blank, count) in counts.iter().enumerate() {
            prop_assert!(*count <= *limits.get(blank).or(limits.last()).unwrap());
        }
    }
}

#[test]
fn only_families_with_blanks_read_in_both_directions() {
    for checkpoint in ["chatglm2", "chatglm3", "glm4-hf", "glm-edge", "glm4-0414"] {
        let layout = causal(checkpoint, 1, 2);
        let prompt = layout.complete(ids([7, 8, 9]), ALL).unwrap();
        assert_eq!(prompt.bidirectional, 0);
        assert_eq!(layout.masks().count(), 0);
        assert_eq!(prompt.visible(1), 2);
    }
    assert_eq!(glm().masks().count(), 3);
    assert_eq!(chatglm().family(), Family::ChatGlm);
}
