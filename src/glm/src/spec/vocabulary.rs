//! Special ids of the released vocabularies, known by their number of rows.
//!
//! Ids that the configuration names itself win; for ChatGLM-6B, whose ids
//! moved once, a disagreement is refused.

use super::SpecialIds;
use super::keys::{Keys, bad};
use crate::{Result, TokenId};

/// Vocabulary rows of the released models, by which their ids are known.
const CHATGLM_ROWS: usize = 130_528;
const CHATGLM_OLD_ROWS: usize = 150_528;
pub(super) const CHATGLM2_ROWS: usize = 65_024;
pub(super) const GLM4_ROWS: usize = 151_552;
const EDGE_ROWS: usize = 59_264;

/// Ids of the released vocabularies; ids written in the configuration win.
pub(super) fn original_ids(keys: Keys<'_>, vocab_rows: usize) -> Result<SpecialIds> {
    let id = |n: u32| Some(TokenId(n));
    let mut ids = match vocab_rows {
        30_592 => SpecialIds {
            pad: id(0),
            cls: id(101),
            part_a_end: id(0),
            mask: id(103),
            sop: id(30_522),
            eop: id(30_523),
            eos: vec![TokenId(0)],
            banned: vec![TokenId(101), TokenId(102)],
            tokenizer_size: Some(30_524),
            ..SpecialIds::default()
        },
        // GLM-RoBERTa and the GPT-2 vocabulary models are padded to the same size;
        // only the latter know sentence and document masks.
        50_304 if keys.flag_or("task_mask", true)? && keys.size("hidden_size")? != 1024 => {
            SpecialIds {
                pad: id(50_256),
                cls: id(50_259),
                part_a_end: id(50_256),
                mask: id(50_260),
                smask: id(50_264),
                gmask: id(50_263),
                sop: id(50_257),
                eop: id(50_258),
                eos: vec![TokenId(50_256)],
                banned: vec![TokenId(50_261), TokenId(50_262), TokenId(50_265)],
                tokenizer_size: Some(50_266),
                ..SpecialIds::default()
            }
        }
        50_304 => SpecialIds {
            pad: id(2),
            cls: id(0),
            part_a_end: id(2),
            mask: id(50_264),
            sop: id(50_265),
            eop: id(50_266),
            eos: vec![TokenId(2)],
            banned: vec![TokenId(1)],
            tokenizer_size: Some(50_267),
            ..SpecialIds::default()
        },
        50_048 => SpecialIds {
            pad: id(50_000),
            cls: id(50_002),
            part_a_end: id(50_000),
            mask: id(50_003),
            smask: id(50_008),
            gmask: id(50_009),
            sop: id(50_006),
            eop: id(50_007),
            eos: vec![TokenId(50_000)],
            banned: vec![
                TokenId(50_001),
                TokenId(50_004),
                TokenId(50_005),
                TokenId(50_010),
            ],
            tokenizer_size: Some(50_011),
            ..SpecialIds::default()
        },
        _ => SpecialIds::default(),
    };
    explicit_ids(keys, &mut ids)?;
    ids.part_a_end = keys
        .id("part_a_end_token_id")?
        .or(keys.id("eos_token_id")?)
        .or(ids.part_a_end);
    Ok(ids)
}

/// Ids that the configuration names itself.
fn explicit_ids(keys: Keys<'_>, ids: &mut SpecialIds) -> Result<()> {
    for (key, place) in [
        ("pad_token_id", &mut ids.pad),
        ("cls_token_id", &mut ids.cls),
        ("mask_token_id", &mut ids.mask),
        ("smask_token_id", &mut ids.smask),
        ("gmask_token_id", &mut ids.gmask),
        ("sop_token_id", &mut ids.sop),
        ("eop_token_id", &mut ids.eop),
    ] {
        *place = keys.id(key)?.or(*place);
    }
    let eos = keys.ids("eos_token_id")?;
    if !eos.is_empty() {
        ids.eos = eos;
    }
    ids.tokenizer_size = keys
        .opt_size("tokenizer_vocab_size")?
        .or(ids.tokenizer_size);
    Ok(())
}

pub(super) fn chatglm_ids(keys: Keys<'_>, vocab_rows: usize) -> Result<SpecialIds> {
    let mut ids = SpecialIds::default();
    let shift = match vocab_rows {
        CHATGLM_ROWS => Some(0),
        CHATGLM_OLD_ROWS => Some(20_000),
        _ => None,
    };
    if let Some(shift) = shift {
        let id = |n: u32| Some(TokenId(n + shift));
        ids = SpecialIds {
            pad: id(3),
            mask: id(130_000),
            gmask: id(130_001),
            smask: id(130_002),
            sop: id(130_004),
            eop: id(130_005),
            eos: vec![TokenId(130_005 + shift)],
            banned: [130_003, 130_006, 130_007]
                .map(|n| TokenId(n + shift))
                .to_vec(),
            // Byte pieces end at 130088 + 255.
            tokenizer_size: Some(130_344 + shift as usize),
            ..SpecialIds::default()
        };
        for (key, known) in [
            ("gmask_token_id", ids.gmask),
            ("bos_token_id", ids.sop),
            ("eos_token_id", ids.eop),
        ] {
            if let (Some(given), Some(known)) = (keys.id(key)?, known)
                && given != known
            {
                return Err(bad(
                    key,
                    format!(
                        "is {given}, but a vocabulary of {vocab_rows} rows has {known} there; \
                         weights, tokenizer and configuration must be of one revision"
                    ),
                ));
            }
        }
    }
    explicit_ids(keys, &mut ids)?;
    // This family calls its piece tokens bos and eos.
    ids.sop = keys.id("bos_token_id")?.or(ids.sop);
    ids.eop = keys.id("eos_token_id")?.or(ids.eop);
    Ok(ids)
}

/// Ids of the causal families.
pub(super) fn causal_ids(keys: Keys<'_>, vocab_rows: usize) -> Result<SpecialIds> {
    // [MASK] stands first in a run of nine specials with the same order in GLM-4 and GLM-Edge.
    let run = |first: u32| SpecialIds {
        pad: Some(TokenId(first - 1)),
        mask: Some(TokenId(first)),
        gmask: Some(TokenId(first + 1)),
        smask: Some(TokenId(first + 2)),
        sop: Some(TokenId(first + 3)),
        eop: Some(TokenId(first + 4)),
        system: Some(TokenId(first + 5)),
        user: Some(TokenId(first + 6)),
        assistant: Some(TokenId(first + 7)),
        observation: Some(TokenId(first + 8)),
        eos: [first - 1, first + 6, first + 8].map(TokenId).to_vec(),
        banned: (first + 9..first + 13).map(TokenId).collect(),
        tokenizer_size: Some(first as usize + 13),
        ..SpecialIds::default()
    };
    let mut ids = match vocab_rows {
        GLM4_ROWS => run(151_330),
        EDGE_ROWS => run(59_247),
        CHATGLM2_ROWS => {
            // The role tokens exist in ChatGLM3 only; in ChatGLM2 their rows are padding.
            let mut ids = run(64_789);
            (ids.pad, ids.eos, ids.banned) = (Some(TokenId(0)), vec![TokenId(2)], Vec::new());
            ids.tokenizer_size = Some(64_798);
            ids
        }
        _ => SpecialIds::default(),
    };
    explicit_ids(keys, &mut ids)?;
    Ok(ids)
}
