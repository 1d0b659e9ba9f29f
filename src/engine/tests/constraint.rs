//! Answers that must have a form: whatever a model prefers, what comes out is in the language.
#![allow(clippy::tests_outside_test_module)] // An integration test is a test module as a whole.

use std::path::Path;

use glm::TokenId;
use glm::spec::SpecialIds;
use glm::tokenizer::{Additions, TextRules, Tokenizer};
use glm_engine::constraint::{Grammar, Lead, Vocabulary};
use glm_engine::request::Constraint;
use glm_engine::{Error, Result};
use proptest::prelude::*;
use serde_json::{Value, json};

fn fixture(path: &str) -> Vec<u8> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/checkpoints");
    std::fs::read(root.join(path)).unwrap()
}

struct Model {
    tokenizer: Tokenizer,
    vocabulary: Vocabulary,
    end: TokenId,
}

impl Model {
    fn new(tokenizer: Tokenizer, end: &str) -> Self {
        let end = tokenizer.special(end).unwrap();
        let special = SpecialIds {
            eos: vec![end],
            ..SpecialIds::default()
        };
        Self {
            vocabulary: Vocabulary::new(&tokenizer, &special, "test").unwrap(),
            tokenizer,
            end,
        }
    }

    fn byte_level() -> Self {
        let file = fixture("glm4-hf/tokenizer.json");
        let tokenizer = Tokenizer::from_json(&file, TextRules::None).unwrap();
        Self::new(tokenizer, "<|user|>")
    }

    fn metaspace() -> Self {
        let file = fixture("chatglm3/tokenizer.model");
        let tokenizer =
            Tokenizer::from_sentencepiece("m", &file, Additions::ChatGlm3, TextRules::None);
        Self::new(tokenizer.unwrap(), "<|user|>")
    }

    fn word_piece() -> Self {
        let file = fixture("glm-post/vocab.txt");
        let tokenizer = Tokenizer::from_wordpiece(&file, Additions::GlmBert).unwrap();
        Self::new(tokenizer, "<|endofpiece|>")
    }

    fn compile(&self, grammar: &Grammar) -> Result<Box<dyn Constraint>> {
        grammar.compile(&self.vocabulary, Lead::Space)
    }

    /// What a model writes whose every logit is a whim of `seed`, and which likes to come to an end.
    fn write(&self, grammar: &Grammar, seed: u64) -> String {
        let mut language = self.compile(grammar).unwrap();
        let rows = self.tokenizer.size() + 9;
        let mut ids = Vec::new();
        let mut state = seed;
        while ids.len() < 600 {
            let mut logits: Vec<f32> = (0..rows)
                .map(|id| {
                    state = state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(11);
                    let whim = f32::from(u16::try_from(state >> 48).unwrap()) / 65_536.0;
                    let id = TokenId(u32::try_from(id).unwrap());
                    let text = self.tokenizer.token_text(id).unwrap_or_default();
                    let closes = ids.len() > 20 && matches!(text.as_str(), "\"" | "}" | "]");
                    whim + f32::from(u8::from(closes || id == self.end)) * 2.0
                })
                .collect();
            language.restrict(&mut logits).unwrap();
            assert!(
                logits[self.tokenizer.size()..]
                    .iter()
                    .all(|x| !x.is_finite())
            );
            let best = (0..rows)
                .max_by(|a, b| logits[*a].total_cmp(&logits[*b]))
                .unwrap();
            assert!(logits[best].is_finite());
            let id = TokenId(u32::try_from(best).unwrap());
            language.accept(id).unwrap();
            if id == self.end {
                return self.tokenizer.decode(&ids);
            }
            assert!(!self.tokenizer.is_special(id));
            ids.push(id);
        }
        panic!("no end: {}", self.tokenizer.decode(&ids));
    }
}

/// Whether a model may write `text` and end there.
fn accepts(model: &Model, grammar: &Grammar, text: &str) -> bool {
    let mut language = model.compile(grammar).unwrap();
    let mut ids = model.tokenizer.encode_plain(text).unwrap();
    ids.push(model.end);
    ids.into_iter().all(|id| {
        let mut logits = vec![0.0; model.tokenizer.size()];
        language.restrict(&mut logits).unwrap();
        let index = usize::try_from(id.0).unwrap();
        logits[index].is_finite() && language.accept(id).is_ok()
    })
}

fn quoted(text: &str) -> Grammar {
    Grammar::JsonSchema(json!({
        "type": "object", "properties": {"name": {"type": "string", "x-quoted": true}},
        "required": ["name"], "additionalProperties": false
    }))
    .quoting(text)
}

fn named(name: &str) -> String {
    json!({ "name": name }).to_string()
}

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "intent": {"enum": ["turn_on", "turn_off", "set"]},
            "area": {"type": "string", "maxLength": 12},
            "level": {"type": "integer", "minimum": 0, "maximum": 100},
            "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3}
        },
        "required": ["intent", "level"],
        "additionalProperties": false
    })
}

#[test]
fn json_is_what_the_schema_says() {
    for model in [Model::byte_level(), Model::metaspace()] {
        for seed in 0..12 {
            let text = model.write(&Grammar::JsonSchema(schema()), seed);
            let answer: Value = serde_json::from_str(&text).unwrap();
            let object = answer.as_object().unwrap();
            assert!(["turn_on", "turn_off", "set"].contains(&object["intent"].as_str().unwrap()));
            assert!((0..=100).contains(&object["level"].as_i64().unwrap()));
            for (key, value) in object {
                match key.as_str() {
                    "intent" | "level" => {}
                    "area" => assert!(value.as_str().unwrap().chars().count() <= 12),
                    "tags" => assert!(value.as_array().unwrap().iter().all(Value::is_boolean)),
                    other => panic!("{other} in {text}"),
                }
            }
            // Keys stand in the order of the schema.
            assert!(text.find("\"intent\"") < text.find("\"level\""), "{text}");
        }
    }
}

#[test]
fn quoted_strings_are_whole_words_of_the_text() {
    let model = Model::byte_level();
    let grammar = quoted("Garage lights off, and lock Anna's side-door \"2\".");
    for run in [
        "garage",
        "Garage lights",
        "Anna",
        "Anna's side-door",
        "side",
        "door \"2",
        "off, and",
    ] {
        assert!(accepts(&model, &grammar, &named(run)), "{run}");
    }
    for other in [
        "arage",
        "Lights",
        "lights lock",
        "",
        " off",
        "off,",
        "attic",
    ] {
        assert!(!accepts(&model, &grammar, &named(other)), "{other}");
    }
    let grammar = quoted("打开客厅的灯");
    assert!(accepts(&model, &grammar, &named("客厅")));
    assert!(!accepts(&model, &grammar, &named("客灯")));
}

#[test]
fn any_object_will_do() {
    let model = Model::byte_level();
    for seed in 0..4 {
        let text = model.write(&Grammar::JsonObject, seed);
        assert!(serde_json::from_str::<Value>(&text).unwrap().is_object());
    }
}

#[test]
fn choices_are_taken_to_the_letter() {
    let choices = ["yes", "no", "a.b|c(d)*", "switched off", "灯"];
    for model in [Model::byte_level(), Model::metaspace()] {
        let grammar = Grammar::Choice(choices.map(str::to_owned).to_vec());
        for seed in 0..20 {
            let text = model.write(&grammar, seed);
            assert!(choices.contains(&text.trim_start_matches(' ')), "{text:?}");
        }
    }
    let model = Model::word_piece();
    let grammar = Grammar::Choice(vec!["a".into(), "b c".into()]);
    for seed in 0..8 {
        let text = model.write(&grammar, seed);
        assert!(["a", "b c"].contains(&text.as_str()), "{text:?}");
    }
}

#[test]
fn expressions_match_as_a_whole() {
    let model = Model::byte_level();
    for regex in ["[a-c]{2,4}-[0-9]{3}", "^[a-c]{2,4}-[0-9]{3}$"] {
        for seed in 0..8 {
            let text = model.write(&Grammar::Regex(regex.into()), seed);
            let (head, tail) = text.trim_start().split_once('-').unwrap();
            assert!((2..=4).contains(&head.len()) && head.bytes().all(|b| b"abc".contains(&b)));
            assert!(
                tail.len() == 3 && tail.bytes().all(|b| b.is_ascii_digit()),
                "{text}"
            );
        }
    }
}

#[test]
fn what_cannot_be_held_is_refused_by_name() {
    let model = Model::byte_level();
    let refusal = |grammar: &Grammar| match model.compile(grammar) {
        Err(Error::Invalid { code, message }) => (code, message),
        other => panic!("{other:?}"),
    };
    let (code, message) = refusal(&Grammar::JsonSchema(json!({
        "type": "object", "properties": {"a": {"type": "array", "contains": {"type": "null"}}}
    })));
    assert_eq!(code, "unsupported_schema");
    assert!(message.contains("uses contains,"), "{message}");
    for grammar in [
        Grammar::JsonSchema(json!([1])),
        Grammar::JsonSchema(json!({"type": "elephant"})),
        Grammar::JsonSchema(json!({"type": "string", "enum": [1]})),
        Grammar::JsonSchema(json!({"description": "x".repeat(100_000)})),
        Grammar::Regex("[a".into()),
        Grammar::Regex("(?=a)b".into()),
        Grammar::Choice(vec![]),
        Grammar::Choice(vec!["a".into(), String::new()]),
        Grammar::Choice(vec!["x".repeat(100); 1000]),
    ] {
        let (code, message) = refusal(&grammar);
        assert_eq!(code, "bad_schema", "{message}");
        assert!(message.starts_with("`response_format`: "), "{message}");
    }
    let error = Model::word_piece()
        .compile(&Grammar::JsonObject)
        .unwrap_err();
    assert_eq!(error.code(), "unsupported_operation");
}

#[test]
fn compiling_is_bounded() {
    let model = Model::byte_level();
    // Their automata have up to 2^300 states: they are built as far as the answer goes, and no
    // further than the limits.
    for grammar in [
        Grammar::Regex("(a|b)*a(a|b){300}".into()),
        Grammar::Regex("((a{900}){900}){900}".into()),
        Grammar::Regex("(a?){500}a{500}".into()),
    ] {
        let mut explosive = match model.compile(&grammar) {
            Ok(language) => language,
            Err(error) => {
                assert_eq!(error.code(), "bad_schema", "{grammar:?}");
                continue;
            }
        };
        let a = model.tokenizer.encode_plain("a").unwrap()[0];
        for _ in 0..200 {
            let mut logits = vec![0.0; model.tokenizer.size()];
            let step = (explosive.restrict(&mut logits)).and_then(|()| explosive.accept(a));
            if let Err(error) = step {
                assert_eq!(error.code(), "constraint_failed", "{grammar:?}");
                break;
            }
        }
    }
    // Large schemas are refused before they are read.
    let wide: serde_json::Map<String, Value> = (0..5000)
        .map(|i| (format!("property {i}"), json!({"type": "string"})))
        .collect();
    let wide = Grammar::JsonSchema(json!({"type": "object", "properties": wide}));
    assert_eq!(model.compile(&wide).unwrap_err().code(), "bad_schema");
    // A schema may refer to itself; the answer then nests as deep as the model likes.
    let nested = json!({
        "type": "object", "required": ["v"], "additionalProperties": false,
        "properties": {"v": {"type": "boolean"}, "child": {"$ref": "#"}}
    });
    let text = model.write(&Grammar::JsonSchema(nested), 3);
    assert!(serde_json::from_str::<Value>(&text).unwrap()["v"].is_boolean());
}

#[test]
fn forks_go_their_own_ways() {
    let model = Model::byte_level();
    let grammar = Grammar::Choice(vec!["ab".into(), "cd".into()]);
    let mut one = model.compile(&grammar).unwrap();
    let id = |text: &str| model.tokenizer.encode_plain(text).unwrap()[0];
    let allowed = |language: &mut Box<dyn Constraint>, id: TokenId| {
        let mut logits = vec![0.0; model.tokenizer.size()];
        language.restrict(&mut logits).unwrap();
        logits[id.index()].is_finite()
    };
    let mut two = one.fork();
    one.accept(id("a")).unwrap();
    assert!(!allowed(&mut one, id("c")));
    assert!(allowed(&mut two, id("c")));
    assert!(!allowed(&mut one, model.end));
    assert!(one.accept(model.end).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn any_choice_can_be_written_and_nothing_else(
        choices in prop::collection::vec("[ -~]{1,12}", 1..6),
        seed in any::<u64>(),
    ) {
        prop_assume!(choices.iter().all(|c| !c.starts_with(' ')));
        let model = Model::byte_level();
        let text = model.write(&Grammar::Choice(choices.clone()), seed);
        let text = text.strip_prefix(' ').unwrap_or(&text);
        prop_assert!(choices.iter().any(|c| c == text), "{:?} not in {:?}", text, choices);
    }

    #[test]
    fn what_is_quoted_stands_in_the_text(text in "[ -~é灯]{0,30}[a-z]", seed in any::<u64>()) {
        let model = Model::byte_level();
        let answer: Value = serde_json::from_str(&model.write(&quoted(&text), seed)).unwrap();
        let name = answer["name"].as_str().unwrap().to_lowercase();
        prop_assert!(text.to_lowercase().contains(&name) && !name.is_empty(), "{:?} not in {:?}", name, text);
    }
}
