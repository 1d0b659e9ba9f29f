//! Tokenizers against ids from elsewhere, and the promises that hold for every vocabulary.
#![allow(clippy::tests_outside_test_module)] // An integration test is a test module as a whole.

use std::path::{Path, PathBuf};

use glm::tokenizer::{Additions, Detokenizer, MaskKind, Piece, TextRules, Tokenizer, flatten};
use glm::{Error, TokenId};
use proptest::prelude::*;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn fixture(path: &str) -> Vec<u8> {
    std::fs::read(repository().join("tests/fixtures/checkpoints").join(path)).unwrap()
}

/// A released vocabulary file, which the repository does not carry.
fn released(name: &str) -> Option<Vec<u8>> {
    let folder = std::env::var_os("GLMD_TOKENIZER_FILES")
        .map_or_else(|| repository().join("target/tokenizers"), PathBuf::from);
    let found = std::fs::read(folder.join(name)).ok();
    if found.is_none() {
        eprintln!("skipped: {name} is not in {}", folder.display());
    }
    found
}

fn ids(numbers: &[u32]) -> Vec<TokenId> {
    numbers.iter().copied().map(TokenId).collect()
}

fn encode(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    let ids = tokenizer.encode_plain(text).unwrap();
    ids.into_iter().map(|id| id.0).collect()
}

// === A SentencePiece file from parts ===

const NORMAL: u8 = 1;
const UNKNOWN: u8 = 2;
const CONTROL: u8 = 3;
const SYMBOL: u8 = 4;
const BYTE: u8 = 6;

fn field(out: &mut Vec<u8>, key: u8, bytes: &[u8]) {
    out.push(key);
    let mut len = bytes.len();
    while len >= 0x80 {
        out.push(u8::try_from(len & 0x7F).unwrap() | 0x80);
        len >>= 7;
    }
    out.push(u8::try_from(len).unwrap());
    out.extend_from_slice(bytes);
}

/// `kind` of the model: 1 Unigram, 2 BPE. No character map, spaces are kept.
fn sentencepiece(kind: u8, byte_fallback: bool, pieces: &[(&str, f32, u8)]) -> Vec<u8> {
    let mut file = Vec::new();
    for (text, score, piece_kind) in pieces {
        let mut piece = Vec::new();
        field(&mut piece, 0x0A, text.as_bytes());
        piece.push(0x15);
        piece.extend_from_slice(&score.to_le_bytes());
        piece.extend_from_slice(&[0x18, *piece_kind]);
        field(&mut file, 0x0A, &piece);
    }
    // Field 35 has a key of two bytes.
    field(
        &mut file,
        0x12,
        &[0x18, kind, 0x98, 0x02, u8::from(byte_fallback)],
    );
    field(&mut file, 0x1A, &[0x18, 1, 0x20, 0]);
    file
}

fn with_bytes() -> Vec<u8> {
    let names: Vec<String> = (0..=u8::MAX).map(|b| format!("<0x{b:02X}>")).collect();
    let mut pieces = vec![
        ("<unk>", 0.0, UNKNOWN),
        ("<s>", 0.0, CONTROL),
        ("</s>", 0.0, CONTROL),
    ];
    pieces.extend(names.iter().map(|n| (n.as_str(), 0.0, BYTE)));
    pieces.extend([
        ("\u{2581}a", -1.0, NORMAL),
        ("bc", -2.0, NORMAL),
        ("ab", -3.0, NORMAL),
        ("\u{2581}\u{2581}", -4.0, NORMAL),
        ("\u{2581}", -5.0, NORMAL),
        ("a", -6.0, NORMAL),
        ("b", -7.0, NORMAL),
        ("c", -8.0, NORMAL),
    ]);
    sentencepiece(2, true, &pieces)
}

fn chatglm_file(kind: u8) -> Vec<u8> {
    sentencepiece(
        kind,
        false,
        &[
            ("<unk>", 0.0, UNKNOWN),
            ("<s>", 0.0, CONTROL),
            ("</s>", 0.0, CONTROL),
            ("<pad>", 0.0, CONTROL),
            ("<n>", 0.0, SYMBOL),
            ("\u{2581}", -1.0, NORMAL),
            ("x", -2.0, NORMAL),
            ("y", -3.0, NORMAL),
            ("[gMASK]", 0.0, SYMBOL),
            ("<sop>", 0.0, SYMBOL),
            ("<|tab|>", 0.0, SYMBOL),
            ("<|blank_2|>", 0.0, SYMBOL),
            ("<|blank_3|>", 0.0, SYMBOL),
        ],
    )
}

fn every_kind() -> Vec<Tokenizer> {
    let rules = TextRules::ChatGlm { id_offset: 20_000 };
    vec![
        Tokenizer::from_json(&fixture("glm4-hf/tokenizer.json"), TextRules::None).unwrap(),
        Tokenizer::from_tiktoken(&fixture("glm4-old/tokenizer.model"), Additions::Glm4).unwrap(),
        Tokenizer::from_sentencepiece("m", &with_bytes(), Additions::ChatGlm3, TextRules::None)
            .unwrap(),
        Tokenizer::from_sentencepiece("m", &chatglm_file(1), Additions::None, rules).unwrap(),
        Tokenizer::from_sentencepiece("m", &chatglm_file(2), Additions::None, rules).unwrap(),
        Tokenizer::from_wordpiece(WORDS.as_bytes(), Additions::GlmBert).unwrap(),
    ]
}

const WORDS: &str =
    "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nlamp\n##s\nis\n.\noff\n[\n]\nmask\n<\n>\n|\nn\n't\n";

// === Released vocabularies ===

#[test]
fn chinese_glm_ids_are_those_of_sentencepiece() {
    let Some(file) = released("cog-pretrain.model") else {
        return;
    };
    let tokenizer = Tokenizer::from_sentencepiece(
        "cog-pretrain.model",
        &file,
        Additions::GlmChinese,
        TextRules::None,
    )
    .unwrap();
    assert_eq!(
        encode(&tokenizer, "清华大学位于北京。"),
        [2795, 23585, 801, 272, 43361]
    );
    assert_eq!(encode(&tokenizer, "是"), [570]);
    assert_eq!(encode(&tokenizer, "不是"), [2350]);
    assert_eq!(
        tokenizer.decode(&ids(&[2795, 23585, 801, 272, 43361])),
        "清华大学位于北京。"
    );
    for (name, id) in [
        ("<|endoftext|>", 50_000),
        ("[MASK]", 50_003),
        ("<|startofpiece|>", 50_006),
        ("[gMASK]", 50_009),
    ] {
        assert_eq!(tokenizer.special(name), Some(TokenId(id)));
    }
    // A symbol at the beginning, in the middle and doubled; ids by sentencepiece 0.2.
    let symbol = tokenizer.encode_plain("<n>x<n><n>").unwrap();
    assert_eq!(symbol[0], TokenId(43_358));
    assert_eq!(symbol.iter().filter(|id| id.0 == 3).count(), 3);
}

#[test]
fn a_bilingual_sample_has_the_ids_of_sentencepiece() {
    let path = repository().join("tests/fixtures/cog_golden.json");
    let golden: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let Some(file) = released("cog-pretrain.model") else {
        return;
    };
    let tokenizer = Tokenizer::from_sentencepiece(
        "cog-pretrain.model",
        &file,
        Additions::GlmChinese,
        TextRules::None,
    )
    .unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert!(cases.len() > 40);
    for case in cases {
        let expected: Vec<u32> = serde_json::from_value(case[1].clone()).unwrap();
        assert_eq!(
            encode(&tokenizer, case[0].as_str().unwrap()),
            expected,
            "{}",
            case[0]
        );
    }
}

#[test]
fn bert_and_gpt2_specials_follow_the_vocabulary() {
    if let Some(file) = released("bert-large-uncased-vocab.txt") {
        let bert = Tokenizer::from_wordpiece(&file, Additions::GlmBert).unwrap();
        assert_eq!(bert.special("<|startofpiece|>"), Some(TokenId(30_522)));
        assert_eq!(bert.special("[MASK]"), Some(TokenId(103)));
        assert_eq!(encode(&bert, "Hello, world!"), [7592, 1010, 2088, 999]);
        assert_eq!(bert.decode(&ids(&[7592, 1010, 2088, 999])), "hello, world!");
    }
    if let (Some(vocab), Some(merges)) = (released("gpt2-vocab.json"), released("gpt2-merges.txt"))
    {
        let gpt2 = Tokenizer::from_byte_bpe(&vocab, &merges, Additions::Glm10b).unwrap();
        assert_eq!(encode(&gpt2, "Hello world"), [15496, 995]);
        for (name, id) in [
            ("<|endoftext|>", 50_256),
            ("<|startofpiece|>", 50_257),
            ("[CLS]", 50_259),
            ("[MASK]", 50_260),
            ("[gMASK]", 50_263),
            ("[sMASK]", 50_264),
        ] {
            assert_eq!(gpt2.special(name), Some(TokenId(id)), "{name}");
        }
    }
    if let (Some(vocab), Some(merges)) = (
        released("roberta-vocab.json"),
        released("roberta-merges.txt"),
    ) {
        let roberta = Tokenizer::from_byte_bpe(&vocab, &merges, Additions::GlmRoberta).unwrap();
        assert_eq!(roberta.special("[MASK]"), Some(TokenId(50_264)));
        assert_eq!(roberta.special("<|startofpiece|>"), Some(TokenId(50_265)));
    }
}

// === Conversions ===

#[test]
fn bpe_merges_best_score_first_and_falls_back_to_bytes() {
    let t = Tokenizer::from_sentencepiece("m", &with_bytes(), Additions::ChatGlm3, TextRules::None)
        .unwrap();
    // Prefix and `a` merge before `ab`; the space that the text begins with stays.
    assert_eq!(encode(&t, "abc"), [259, 260]);
    assert_eq!(encode(&t, " abc"), [262 + 1, 259, 260]);
    assert_eq!(encode(&t, "é"), [263, 3 + 0xC3, 3 + 0xA9]);
    assert_eq!(encode(&t, ""), [0u32; 0]);
    assert_eq!(t.decode(&ids(&[263, 3 + 0xC3, 3 + 0xA9, 259])), "é a");
    assert_eq!(t.special("<|observation|>"), Some(TokenId(267 + 8)));
}

#[test]
fn chatglm_symbols_survive_a_round_trip_through_the_canonical_file() {
    for kind in [1, 2] {
        let rules = TextRules::ChatGlm { id_offset: 20_000 };
        let first = Tokenizer::from_sentencepiece("m", &chatglm_file(kind), Additions::None, rules)
            .unwrap();
        let again = Tokenizer::from_json(first.to_json().unwrap().as_bytes(), rules).unwrap();
        for t in [&first, &again] {
            let text = "x\ny   x\t  ";
            let wanted = [5, 6, 4, 7, 12, 6, 10, 11].map(|id| id + 20_000);
            assert_eq!(encode(t, text), wanted);
            assert_eq!(t.decode(&ids(&wanted)), text);
            assert_eq!(encode(t, "\n"), [20_005, 20_004]);
            assert_eq!(t.special("[gMASK]"), Some(TokenId(20_008)));
            assert_eq!(t.size(), 20_013);
        }
    }
}

#[test]
fn wordpiece_decodes_as_words() {
    let t = Tokenizer::from_wordpiece(WORDS.as_bytes(), Additions::GlmBert).unwrap();
    assert_eq!(encode(&t, "Lamps is OFF."), [5, 6, 7, 9, 8]);
    assert_eq!(t.decode(&ids(&[5, 6, 7, 9, 8])), "lamps is off.");
    assert_eq!(t.decode(&ids(&[2, 5, 4, 9])), "lamp off");
}

// === Blanks ===

#[test]
fn masks_eat_the_space_before_them() {
    let t = Tokenizer::from_json(&fixture("glm4-hf/tokenizer.json"), TextRules::None).unwrap();
    let pieces = t.encode_with_masks("a  [MASK] b[gMASK][sMASK]").unwrap();
    let text = |s: &str| Piece::Text(t.encode_plain(s).unwrap());
    let mask = |kind: MaskKind| Piece::Mask {
        kind,
        id: t.special(kind.marker()).unwrap(),
    };
    assert_eq!(
        pieces,
        [
            text("a"),
            mask(MaskKind::Span),
            text(" b"),
            mask(MaskKind::Document),
            mask(MaskKind::Sentence),
        ]
    );
    let (flat, at) = flatten(&pieces);
    assert_eq!(at.len(), 3);
    assert!(at.iter().all(|i| t.is_special(flat[*i])));

    let bert = Tokenizer::from_wordpiece(WORDS.as_bytes(), Additions::GlmBert).unwrap();
    let refused = bert.encode_with_masks("lamp [gMASK]");
    assert!(matches!(refused, Err(Error::Input { field: "text", .. })));
}

// === Bad files ===

#[test]
fn damaged_files_are_refused() {
    let code = |r: glm::Result<Tokenizer>| r.err().map(|e| e.code());
    let bad = Some("bad_tokenizer");
    assert_eq!(code(Tokenizer::from_json(b"{}", TextRules::None)), bad);
    assert_eq!(code(Tokenizer::from_json(b"\xFF", TextRules::None)), bad);
    for file in [
        &b"IQ== 1\n"[..],
        b"IQ==\n",
        b"!! 0\n",
        b"IQ== x\n",
        b"IQ== 0\nIQ== 1\n",
        b"IQ== 4000000000\n",
        b"",
    ] {
        assert_eq!(code(Tokenizer::from_tiktoken(file, Additions::Glm4)), bad);
    }
    let pieces = [("<unk>", 0.0, UNKNOWN), ("a", f32::NAN, NORMAL)];
    let twice = [("a", 0.0, NORMAL), ("a", 0.0, NORMAL)];
    let word = [("<unk>", 0.0, UNKNOWN), ("a", 0.0, NORMAL)];
    for file in [
        sentencepiece(2, false, &pieces),
        sentencepiece(2, false, &twice),
        sentencepiece(3, false, &word),
        sentencepiece(2, false, &[]),
        b"\x0A\xFF\xFF".to_vec(),
    ] {
        let got = Tokenizer::from_sentencepiece("m", &file, Additions::None, TextRules::None);
        assert_eq!(code(got), bad);
    }
    assert_eq!(
        code(Tokenizer::from_wordpiece(b"a\nb\n", Additions::None)),
        bad
    );
    assert_eq!(
        code(Tokenizer::from_byte_bpe(
            b"{\"a\":-1}",
            b"",
            Additions::None
        )),
        bad
    );
    assert_eq!(
        code(Tokenizer::from_byte_bpe(
            b"{\"a\":0}",
            b"a b\n",
            Additions::None
        )),
        bad
    );
}

#[test]
fn special_tokens_of_a_checkpoint_stand_behind_its_vocabulary() {
    let bert = || Tokenizer::from_wordpiece(WORDS.as_bytes(), Additions::GlmBert).unwrap();
    let next = u32::try_from(bert().size()).unwrap();
    let known = bert().special("[MASK]").unwrap();
    let more = |tokens: &[(u32, &str)]| {
        let tokens = tokens
            .iter()
            .map(|(id, text)| (TokenId(*id), (*text).to_owned()));
        bert().with_specials(&tokens.collect())
    };
    // A known token keeps its id, whatever the file says.
    let all = [(next + 1, "[sMASK]"), (next, "[gMASK]"), (9, "[MASK]")];
    let grown = more(&all).unwrap();
    assert_eq!(grown.special("[gMASK]"), Some(TokenId(next)));
    assert_eq!(grown.special("[sMASK]"), Some(TokenId(next + 1)));
    assert_eq!(grown.special("[MASK]"), Some(known));
    let again = Tokenizer::from_json(grown.to_json().unwrap().as_bytes(), TextRules::None).unwrap();
    assert_eq!(again.special("[sMASK]"), Some(TokenId(next + 1)));
    for wrong in [next - 1, next + 1] {
        assert_eq!(
            more(&[(wrong, "[gMASK]")]).unwrap_err().code(),
            "bad_tokenizer"
        );
    }
}

#[test]
fn ids_beyond_the_embedding_table_are_refused() {
    let t = Tokenizer::from_json(&fixture("glm4-hf/tokenizer.json"), TextRules::None).unwrap();
    assert!(t.check_vocab(t.size()).is_ok());
    match t.check_vocab(t.size() - 1) {
        Err(Error::VocabularyTooSmall { id, rows, .. }) => {
            assert_eq!((id.index(), rows), (t.size() - 1, t.size() - 1));
        }
        other => panic!("{other:?}"),
    }
}

// === Promises ===

fn hostile() -> impl Strategy<Value = String> {
    let name = prop::sample::select(vec![
        "<|user|>",
        "<|assistant|>",
        "[MASK]",
        "[gMASK]",
        "[sMASK]",
        "<sop>",
        "sop",
        "<s>",
        "</s>",
        "<pad>",
        "<|endoftext|>",
        "<|observation|>",
        "[CLS]",
        "［ｇMASK］",
        "<|",
        "|>",
        "[",
        " ",
        "\n",
        "\t",
        "    ",
        "<|blank_3|>",
        "<n>",
        "<0x41>",
        "\u{2581}",
    ]);
    prop::collection::vec(
        prop_oneof![3 => name.prop_map(str::to_owned), 1 => ".{0,4}"],
        0..8,
    )
    .prop_map(|parts| parts.concat())
}

thread_local! {
    static ALL: Vec<Tokenizer> = every_kind();
}

proptest! {
    /// Role tokens, masks and end marks never come out of text.
    #[test]
    fn text_never_becomes_a_special_token(text in hostile()) {
        ALL.with(|all| {
            for t in all {
                for id in t.encode_plain(&text).unwrap() {
                    let name = t.token_text(id).unwrap();
                    prop_assert!(
                        !t.is_special(id) || ["<unk>", "[UNK]"].contains(&name.as_str()),
                        "{text:?} gave {name}"
                    );
                }
            }
            Ok(())
        })?;
    }

    /// A byte-level vocabulary loses nothing.
    #[test]
    fn byte_level_text_comes_back(text in prop_oneof![hostile(), any::<String>()]) {
        ALL.with(|all| {
            for t in &all[..2] {
                prop_assert_eq!(&t.decode(&t.encode_plain(&text).unwrap()), &text);
            }
            // Both files hold the same vocabulary.
            prop_assert_eq!(encode(&all[0], &text), encode(&all[1], &text));
            // Byte fallback loses nothing either.
            prop_assert_eq!(&all[2].decode(&all[2].encode_plain(&text).unwrap()), &text.replace('\u{2581}', " "));
            Ok(())
        })?;
    }

    /// A stream adds up to the whole, whatever the ids; it never takes back a character.
    #[test]
    fn stream_adds_up(numbers in prop::collection::vec(0u32..340, 0..40)) {
        ALL.with(|all| {
            for t in all {
                let offset = if matches!(t.rules(), TextRules::ChatGlm { .. }) { 20_000 } else { 0 };
                let ids: Vec<TokenId> = numbers.iter().map(|n| TokenId(n + offset)).collect();
                let mut stream = Detokenizer::default();
                let mut text = String::new();
                for id in &ids {
                    text.push_str(&stream.push(t, *id));
                }
                text.push_str(&stream.finish());
                prop_assert_eq!(&text, &t.decode(&ids));
            }
            Ok(())
        })?;
    }

    /// Bytes in any order decode as the lossy conversion of the whole.
    #[test]
    fn bytes_decode_like_lossy_utf8(bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(0xE4), Just(0xBD), Just(0xA0)], 0..24)) {
        ALL.with(|all| {
            let ids: Vec<TokenId> = bytes.iter().map(|b| TokenId(3 + u32::from(*b))).collect();
            prop_assert_eq!(all[2].decode(&ids), String::from_utf8_lossy(&bytes));
            let mut stream = Detokenizer::default();
            for id in ids {
                let part = stream.push(&all[2], id);
                let next = stream.clone().finish();
                // What is held back is an unfinished character, never more than three bytes.
                prop_assert!(next.chars().count() <= 1 && part.len() <= 12);
            }
            Ok(())
        })?;
    }
}
