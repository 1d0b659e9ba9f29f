//! Completions and conversations.

use std::sync::Arc;

use glm::TokenId;
use glm::chat::{Conversation, Message, Role, ToolCall};
use glm::spec::SpecialIds;
use glm_engine::Error;
use glm_engine::collect::Collected;
use glm_engine::model::ModelInfo;
use glm_engine::ops::{Complete, Converse, Finish, Infill, Planned, Sampling, Terms};
use glm_engine::request::Work;

use crate::bench::{Bench, tokenizer};
use crate::support::{END, VOCABULARY, capabilities, info};

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
