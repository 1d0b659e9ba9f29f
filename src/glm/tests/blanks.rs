//! Texts with blanks, laid out here and by the trainer, must be the same to the model.
//!
//! `tests/fixtures/blanks.json` is written by `models/train/golden.py`, which has its own
//! implementation of the layout: what the bundled model was trained on.
#![allow(clippy::tests_outside_test_module)] // An integration test is a test module as a whole.

use std::path::Path;

use glm::prompt::{Filling, Fit, Layout, Order, Read, Truncation};
use glm::spec::{Hints, SpecialIds};
use glm::tokenizer::{MaskKind, Piece};
use glm::{ModelSpec, Placed, TokenId};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    special: Special,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Special {
    cls: u32,
    mask: u32,
    smask: u32,
    gmask: u32,
    sop: u32,
    eop: u32,
    eos: u32,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    part_a: String,
    pieces: Vec<Vec<u32>>,
    order: Vec<usize>,
    bidirectional: usize,
    ids: Vec<u32>,
    pos0: Vec<u32>,
    pos1: Vec<u32>,
    labels: Vec<i64>,
}

fn fixtures() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

fn golden() -> Golden {
    serde_json::from_slice(&std::fs::read(fixtures().join("blanks.json")).unwrap()).unwrap()
}

fn layout(special: &Special) -> Layout {
    let id = |n| Some(TokenId(n));
    let config = std::fs::read(fixtures().join("checkpoints/glm-post/config.json")).unwrap();
    let config = serde_json::from_slice(&config).unwrap();
    let ids = SpecialIds {
        pad: id(special.eos),
        cls: id(special.cls),
        part_a_end: id(special.eos),
        mask: id(special.mask),
        smask: id(special.smask),
        gmask: id(special.gmask),
        sop: id(special.sop),
        eop: id(special.eop),
        eos: vec![TokenId(special.eos)],
        ..SpecialIds::default()
    };
    let spec = ModelSpec::from_config(&config, &Hints::default()).unwrap();
    Layout::new(&spec, ids).unwrap()
}

/// `[5 6] [MASK] [7]` as pieces.
fn parse(text: &str, special: &Special) -> Vec<Piece> {
    let mask = |kind, id| Piece::Mask {
        kind,
        id: TokenId(id),
    };
    let pieces = text.split('[').skip(1).map(|part| match part.trim() {
        "MASK]" => mask(MaskKind::Span, special.mask),
        "sMASK]" => mask(MaskKind::Sentence, special.smask),
        "gMASK]" => mask(MaskKind::Document, special.gmask),
        ids => Piece::Text(
            ids.trim_end_matches(']')
                .split(' ')
                .map(|id| TokenId(id.parse().unwrap()))
                .collect(),
        ),
    });
    pieces.collect()
}

fn columns(tokens: &[Placed]) -> (Vec<u32>, Vec<u32>, Vec<u32>) {
    let each = |f: fn(&Placed) -> u32| tokens.iter().map(f).collect();
    (
        each(|t| t.id.0),
        each(|t| t.position.first),
        each(|t| t.position.second),
    )
}

#[test]
fn texts_with_blanks_are_laid_out_as_the_trainer_lays_them_out() {
    let golden = golden();
    let layout = layout(&golden.special);
    let all = Fit {
        limit: usize::MAX,
        truncation: Truncation::Refuse,
    };
    for case in &golden.cases {
        let name = &case.name;
        let prompt = layout
            .infill(&parse(&case.part_a, &golden.special), all)
            .unwrap();
        assert_eq!(prompt.bidirectional, case.bidirectional, "{name}");
        assert_eq!(prompt.blanks.len(), case.pieces.len(), "{name}");
        // Each piece sits at its own mask, in whatever order the pieces are written.
        let mut at = case.bidirectional;
        for &piece in &case.order {
            let length = 1 + case.pieces[piece].len();
            let mask = prompt.blanks[piece].mask;
            assert!(
                case.pos0[at..at + length].iter().all(|p| *p == mask),
                "{name}"
            );
            at += length;
        }
        assert_eq!(at, case.ids.len(), "{name}");
        if !case.order.is_sorted() {
            let (ids, pos0, pos1) = columns(&prompt.tokens[..prompt.bidirectional]);
            assert_eq!(ids, case.ids[..prompt.bidirectional], "{name}");
            assert_eq!(pos0, case.pos0[..prompt.bidirectional], "{name}");
            assert_eq!(pos1, case.pos1[..prompt.bidirectional], "{name}");
            continue;
        }
        // The model writes the labels; what it reads must be what the trainer showed it.
        let mut read = prompt.tokens.clone();
        let mut filling = Filling::new(&layout, &prompt, &[usize::MAX], Order::Pieces);
        for label in case.labels.iter().filter(|label| **label >= 0) {
            match filling
                .push(TokenId(u32::try_from(*label).unwrap()))
                .unwrap()
            {
                Read::More(tokens) => read.extend(tokens),
                Read::Nothing => {}
                Read::Anew { .. } => panic!("{name}: read anew"),
            }
        }
        let (ids, pos0, pos1) = columns(&read);
        assert_eq!(ids, case.ids, "{name}");
        assert_eq!(pos0, case.pos0, "{name}");
        assert_eq!(pos1, case.pos1, "{name}");
    }
}
