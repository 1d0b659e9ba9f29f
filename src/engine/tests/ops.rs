//! Operations on a model without weights: what goes to the engine and what comes back typed.
#![allow(clippy::tests_outside_test_module)] // An integration test is a test module as a whole.

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use glm::chat::{Conversation, Message, Role, ToolCall};
use glm::cloze::Normalize;
use glm::manifest::Tasks;
use glm::prompt::{Order, Truncation};
use glm::spec::{Hints, SpecialIds};
use glm::tokenizer::{MaskKind, TextRules, Tokenizer};
use glm::{ModelSpec, Position, TokenId};
use glm_engine::collect::Collected;
use glm_engine::constraint::Grammar;
use glm_engine::model::ModelInfo;
use glm_engine::ops::{
    Classify, Complete, Converse, Finish, Infill, Operations, Planned, Prepared, Sampling, Terms,
};
use glm_engine::request::Work;
use glm_engine::units::{Epoch, Priority};
use glm_engine::{Config, Error, Request};
use support::{END, Rig, VOCABULARY, capabilities, info};

const SPECIALS: [&str; 7] = [
    "[PAD]",
    "[CLS]",
    "[sMASK]",
    "[gMASK]",
    "[MASK]",
    "<|startofpiece|>",
    "<|endofpiece|>",
];

/// Words from `w0` on, the unknown word, `.`, and special tokens: 64 in all.
fn tokenizer(specials: &[&str]) -> Tokenizer {
    let words = VOCABULARY - specials.len();
    let mut vocab: serde_json::Map<String, serde_json::Value> = (0..words - 2)
        .map(|id| (format!("w{id}"), id.into()))
        .collect();
    vocab.insert("[UNK]".into(), (words - 2).into());
    vocab.insert(".".into(), (words - 1).into());
    let mut added = Vec::new();
    for (id, name) in (words..).zip(specials) {
        vocab.insert((*name).into(), id.into());
        added.push(
            serde_json::json!({"id": id, "content": name, "special": true,
            "single_word": false, "lstrip": false, "rstrip": false, "normalized": false}),
        );
    }
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": null, "pre_tokenizer": { "type": "BertPreTokenizer" }, "post_processor": null,
        "decoder": { "type": "WordPiece", "prefix": "##", "cleanup": true },
        "model": { "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocab }
    });
    Tokenizer::from_json(json.to_string().as_bytes(), TextRules::None).unwrap()
}

const TASKS: &str = r#"{
    "severity": {"kind": "classify", "description": "How bad it is.", "pattern": "{text} w50 [MASK].",
                 "labels": {"high": ["w1", "w2"], "low": ["w3"]}},
    "form": {"kind": "infill", "description": "JSON.", "pattern": "{text} [MASK]", "max_tokens": 5,
             "json_schema": {"type": "object"}},
    "intent": {"kind": "infill", "description": "What is wanted.", "pattern": "w51 {text} [gMASK]", "max_tokens": 5}
}"#;

/// The original GLM with all masks.
fn model() -> ModelInfo {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/fixtures/checkpoints/glm-post/config.json");
    let config = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let tokenizer = tokenizer(&SPECIALS);
    let mut special = SpecialIds {
        eos: vec![],
        part_a_end: tokenizer.special("[PAD]"),
        tokenizer_size: Some(VOCABULARY),
        ..SpecialIds::default()
    };
    special.complete(|name| tokenizer.special(name));
    assert_eq!(special.eop, Some(END));
    let tasks: Tasks = serde_json::from_str(TASKS).unwrap();
    ModelInfo {
        spec: ModelSpec::from_config(&config, &Hints::default()).unwrap(),
        special,
        tokenizer: Arc::new(tokenizer),
        tasks,
        ..info(capabilities())
    }
}

struct Bench {
    rig: Rig,
    operations: Operations,
}

impl Bench {
    fn new() -> Self {
        Self::with(model())
    }

    fn with(model: ModelInfo) -> Self {
        let rig = Rig::with(Config::default(), model);
        let operations = Operations::new(rig.handle.model().unwrap()).unwrap();
        Self { rig, operations }
    }

    fn run(&mut self, request: Request) -> Collected {
        let mut ticket = self.rig.submit(request);
        self.rig.run();
        let mut collected = Collected::default();
        while let Some(event) = ticket.try_next() {
            if collected.push(event).unwrap() {
                return collected;
            }
        }
        panic!("no last event");
    }
}

fn words(text: &str) -> usize {
    text.split_whitespace().count()
}

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
fn classification_is_one_request_for_all_texts() {
    let mut bench = Bench::new();
    let ask = Classify {
        texts: vec!["w4 w5".into(), "w6 [MASK] w7".into(), String::new()],
        task: Some("severity".into()),
        ..Classify::default()
    };
    let Planned { request, reader } = bench.operations.classify(&ask, Terms::default()).unwrap();
    bench.rig.steps();
    let collected = bench.run(request);
    let result = reader.read(&collected).unwrap();
    assert_eq!(result.verdicts.len(), 3);
    assert_eq!(result.scoring, None);
    for verdict in &result.verdicts {
        assert!((verdict.scores.values().sum::<f64>() - 1.0).abs() < 1e-9);
        assert_eq!(verdict.scores.len(), 2);
    }
    assert_ne!(result.verdicts[0].scores, result.verdicts[1].scores);
    // One-token words: nothing is read beyond the prompts.
    let rows: usize = bench.rig.steps().iter().map(Vec::len).sum();
    assert_eq!(rows, result.usage.prompt_tokens);
    // By name or spelled out: the same.
    let spelled = Classify {
        task: None,
        pattern: Some("{text} w50 [MASK].".into()),
        labels: Some(labels(&[("high", &["w1", "w2"]), ("low", &["w3"])])),
        ..ask
    };
    let planned = bench.operations.classify(&spelled, Terms::default());
    let Planned { request, reader } = planned.unwrap();
    let collected = bench.run(request);
    assert_eq!(reader.read(&collected).unwrap().verdicts, result.verdicts);
}

fn labels(labels: &[(&str, &[&str])]) -> BTreeMap<String, Vec<String>> {
    (labels.iter())
        .map(|(name, words)| {
            let words = words.iter().map(|w| (*w).to_owned()).collect();
            ((*name).to_owned(), words)
        })
        .collect()
}

#[test]
fn longer_words_and_calibration_go_through_the_engine() {
    let mut bench = Bench::new();
    let ask = Classify {
        texts: vec!["w4".into()],
        pattern: Some("{text} w50 [MASK].".into()),
        labels: Some(labels(&[
            ("high", &["w1 w2"]),
            ("low", &["w3", "w4 w5 w6"]),
        ])),
        normalize: Some(Normalize::Mean),
        ..Classify::default()
    };
    let Planned { request, reader } = bench.operations.classify(&ask, Terms::default()).unwrap();
    let collected = bench.run(request);
    let scores = &collected.finished.scores;
    // Each with its end.
    let lengths: Vec<usize> = scores[0].iter().map(Vec::len).collect();
    assert_eq!(lengths, [3, 2, 4]);
    let plain = reader.read(&collected).unwrap();
    let high = scores[0][0].iter().sum::<f64>() / 3.0;
    assert!((plain.verdicts[0].logprobs["high"] - high).abs() < 1e-12);

    let calibrated = Classify {
        calibrate: Some(true),
        ..ask
    };
    let planned = bench.operations.classify(&calibrated, Terms::default());
    let Planned { request, reader } = planned.unwrap();
    let collected = bench.run(request);
    assert_eq!(collected.finished.scores.len(), 3);
    let result = reader.read(&collected).unwrap();
    assert_eq!(result.verdicts.len(), 1);
    assert_eq!(result.verdicts[0].logprobs, plain.verdicts[0].logprobs);
    assert_ne!(result.verdicts[0].scores, plain.verdicts[0].scores);
}

#[test]
fn completions_continue_and_echo() {
    let mut bench = Bench::new();
    let ask = Complete {
        max_tokens: Some(8),
        echo: true,
        sampling: Sampling {
            seed: Some(3),
            logprobs: Some(2),
            ..Sampling::default()
        },
        ..Complete::new("w1 w2")
    };
    let Planned { request, reader } = bench.operations.complete(ask, Terms::default()).unwrap();
    let collected = bench.run(request);
    let result = reader.read(&collected);
    let choice = &result.choices[0];
    assert!(choice.text.starts_with("w1 w2"));
    let text: String = choice.tokens.iter().map(|t| t.text.as_str()).collect();
    assert_eq!(choice.text, format!("w1 w2{text}"));
    for token in &choice.tokens {
        assert_eq!(token.top.len(), 2);
        assert!(token.logprob.unwrap() < 0.0);
        assert!(text[token.offset..].starts_with(&token.text));
    }
    // Part A is read in both directions: its tokens have no probabilities.
    assert!(result.prompt.is_empty());
}

#[test]
fn causal_models_report_their_prompt() {
    let mut bench = Bench::with(info(capabilities()));
    let ask = Complete {
        max_tokens: Some(3),
        echo: true,
        sampling: Sampling {
            logprobs: Some(1),
            ..Sampling::default()
        },
        ..Complete::new("w1 w2 w3")
    };
    let Planned { request, reader } = bench.operations.complete(ask, Terms::default()).unwrap();
    let collected = bench.run(request);
    let result = reader.read(&collected);
    let texts: Vec<&str> = result.prompt.iter().map(|t| t.text.as_str()).collect();
    assert_eq!(texts, ["w1", " w2", " w3"]);
    assert_eq!(result.prompt[0].logprob, None);
    assert!(result.prompt[2].logprob.is_some());
    let infill = bench
        .operations
        .infill(Infill::new("w1 [MASK]"), Terms::default());
    assert!(matches!(infill, Err(Error::Invalid { .. })));
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

/// A causal family with roles; the user's token ends an answer.
fn chatting() -> ModelInfo {
    let names = ["<|system|>", "<|assistant|>", "<|observation|>", "<|user|>"];
    let tokenizer = tokenizer(&names);
    let mut special = SpecialIds {
        eos: vec![END],
        tokenizer_size: Some(VOCABULARY),
        ..SpecialIds::default()
    };
    special.complete(|name| tokenizer.special(name));
    assert_eq!(special.user, Some(END));
    ModelInfo {
        special,
        tokenizer: Arc::new(tokenizer),
        ..info(capabilities())
    }
}

#[test]
fn conversations_are_answered() {
    let mut bench = Bench::with(chatting());
    let conversation = Conversation {
        messages: vec![
            Message::new(Role::System, "w1"),
            Message::new(Role::User, "w2 <|assistant|> w3"),
        ],
        tools: vec![],
    };
    let ask = Converse {
        n: 2,
        max_tokens: Some(8),
        sampling: Sampling {
            logprobs: Some(0),
            seed: Some(5),
            ..Sampling::default()
        },
        ..Converse::new(conversation)
    };
    let Planned { request, reader } = bench.operations.chat(ask, Terms::default()).unwrap();
    let Work::Generate(work) = &request.work else {
        panic!("it writes");
    };
    // GLM-Edge's own way to choose tokens.
    assert_eq!(work.sampling.repetition_penalty, 1.2);
    let tokenizer = &bench.operations.model().tokenizer;
    let roles: Vec<TokenId> = (work.prompt.tokens.iter().map(|t| t.id))
        .filter(|id| tokenizer.is_special(*id))
        .collect();
    let expected = ["<|system|>", "<|user|>", "<|assistant|>"];
    assert_eq!(roles, expected.map(|name| tokenizer.special(name).unwrap()));
    let mut stream = reader.stream();
    let collected = bench.run(request);
    let result = reader.read(&collected);
    assert_eq!(result.choices.len(), 2);
    let said = stream.push(&collected.choices[0].text());
    assert_eq!(said, result.choices[0].content);
    for choice in &result.choices {
        let text: String = choice.tokens.iter().map(|t| t.text.as_str()).collect();
        assert_eq!(choice.content, text);
        assert!(choice.tokens.iter().all(|t| t.logprob.is_some()));
    }
    assert!(result.usage.completion_tokens <= 16);
}

#[test]
fn a_reply_that_names_a_tool_is_a_call() {
    let bench = Bench::with(ModelInfo {
        chat_template: Some(
            "{% if tools %}{{ tools[0].name }}{% endif %}<|user|>w1<|assistant|>".into(),
        ),
        ..chatting()
    });
    let conversation = Conversation {
        messages: vec![Message::new(Role::User, "w1")],
        tools: vec![serde_json::json!({"name": "w9"})],
    };
    let planned = bench
        .operations
        .chat(Converse::new(conversation), Terms::default());
    let Planned { reader, .. } = planned.unwrap();
    let mut collected = Collected::default();
    collected.choices.resize_with(1, Default::default);
    collected.choices[0].blanks.resize_with(1, Default::default);
    collected.choices[0].blanks[0].text = "w9\n{\"a\": 1}".into();
    let choice = reader.read(&collected).choices.remove(0);
    assert_eq!(choice.content, "");
    assert_eq!(choice.finish, Finish::ToolCalls);
    let expected = ToolCall {
        name: "w9".into(),
        arguments: serde_json::json!({"a": 1}),
    };
    assert_eq!(choice.calls, [expected]);
}

#[test]
fn models_that_do_not_chat_say_so() {
    let operations = Bench::new().operations;
    let ask = Converse::new(Conversation::default());
    let error = operations.chat(ask, Terms::default()).unwrap_err();
    assert_eq!(error.code(), "unsupported_operation");
    let broken = ModelInfo {
        chat_template: Some("{% if %}".into()),
        ..chatting()
    };
    let operations = Bench::with(broken).operations;
    let ask = Converse::new(Conversation::default());
    let error = operations.chat(ask, Terms::default()).unwrap_err();
    assert_eq!(error.code(), "bad_template");
    // The rest goes on.
    assert!(
        operations
            .complete(Complete::new("w1"), Terms::default())
            .is_ok()
    );
}

#[test]
fn tokenizing_shows_what_the_model_reads() {
    let operations = Bench::new().operations;
    let shown = operations.tokenize("w1 [MASK] w2").unwrap();
    let expected = ["[CLS]", "w1", "[MASK]", "w2", "[PAD]", "<|startofpiece|>"];
    assert_eq!(shown.pieces, expected);
    assert_eq!(shown.prompt.bidirectional, 5);
    let shown = operations.tokenize("w1").unwrap();
    assert_eq!(shown.pieces[2..], ["[gMASK]", "<|startofpiece|>"]);
}

#[test]
fn bad_requests_say_what_is_wrong() {
    let operations = Bench::new().operations;
    let infill = |ask: Infill| operations.infill(ask, Terms::default()).unwrap_err();
    let message = |error: Error| {
        assert!(matches!(error, Error::Invalid { .. }), "{error:?}");
        error.to_string()
    };
    assert!(message(infill(Infill::new("w1"))).contains("has no blank"));
    let unknown = Infill {
        task: Some("no".into()),
        ..Infill::new("w1")
    };
    assert!(message(infill(unknown)).contains("form, intent, severity"));
    let long = Infill::new(format!("{}[MASK]", "w1 ".repeat(600)));
    let error = infill(long);
    assert_eq!(error.code(), "prompt_too_long");
    let fits = Infill {
        truncation: Truncation::Cut,
        ..Infill::new(format!("{}[MASK]", "w1 ".repeat(600)))
    };
    let planned = operations.infill(fits, Terms::default()).unwrap();
    // All 512 positions: [CLS], text, mask, end, start, and 32 for the answer.
    assert_eq!(planned.reader.removed(), 600 - (512 - 32 - 4));
    for (max_tokens, code) in [(0, "bad_input"), (512, "prompt_too_long")] {
        let ask = Infill {
            max_tokens: Some(max_tokens),
            ..Infill::new("[MASK]")
        };
        assert_eq!(infill(ask).code(), code);
    }
    let classify = |ask: &Classify| {
        let planned = operations.classify(ask, Terms::default());
        message(planned.map(|_| ()).unwrap_err())
    };
    let ask = Classify {
        texts: vec!["w1".into()],
        ..Classify::default()
    };
    assert!(classify(&Classify::default()).contains("`text`"));
    assert!(classify(&ask).contains("`pattern`"));
    let both = Classify {
        task: Some("severity".into()),
        pattern: Some("{text} [MASK]".into()),
        ..ask.clone()
    };
    assert!(classify(&both).contains("`task`"));
    let wrong = Classify {
        task: Some("intent".into()),
        ..ask
    };
    assert!(classify(&wrong).contains("use infill"));
}

#[test]
fn terms_and_epoch_travel_with_the_request() {
    let bench = Bench::new();
    let terms = Terms {
        priority: Priority::High,
        client: "door".into(),
        coalesce_key: Some("k".into()),
        ..Terms::default()
    };
    let planned = bench
        .operations
        .infill(Infill::new("[MASK]"), terms)
        .unwrap();
    assert_eq!(planned.request.priority, Priority::High);
    assert_eq!(&*planned.request.client, "door");
    assert_eq!(planned.request.epoch, Epoch(1));
    let prepared = Prepared::default();
    let model = bench.rig.handle.model().unwrap();
    let first = prepared.get(&model).unwrap();
    assert!(Arc::ptr_eq(&first, &prepared.get(&model).unwrap()));
    let reloaded = Arc::new(ModelInfo {
        epoch: Epoch(2),
        ..ModelInfo::clone(&model)
    });
    assert!(!Arc::ptr_eq(&first, &prepared.get(&reloaded).unwrap()));
}
