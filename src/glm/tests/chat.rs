//! Conversations: ids against Jinja2 with Hugging Face's settings and the `tokenizers` package, the
//! published layouts, and the promise that nobody speaks in another's role.
#![allow(clippy::tests_outside_test_module)] // An integration test is a test module as a whole.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use glm::chat::{Chat, Conversation, Message, Role, ToolCall};
use glm::prompt::Layout;
use glm::spec::Hints;
use glm::tokenizer::{Additions, TextRules, Tokenizer};
use glm::{ModelSpec, TokenId};
use proptest::prelude::*;
use serde_json::{Value, json};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

fn read(path: &str) -> Vec<u8> {
    std::fs::read(fixtures().join(path)).unwrap()
}

struct Model {
    tokenizer: Tokenizer,
    layout: Layout,
}

impl Model {
    fn new(checkpoint: &str, tokenizer: Tokenizer) -> Self {
        let file = |name: &str| -> Value {
            serde_json::from_slice(&read(&format!("checkpoints/{checkpoint}/{name}"))).unwrap()
        };
        let tokenizer_config = file("tokenizer_config.json");
        let hints = Hints {
            tokenizer_config: Some(&tokenizer_config),
            ..Hints::default()
        };
        let spec = ModelSpec::from_config(&file("config.json"), &hints).unwrap();
        let special = tokenizer.specials(&spec).unwrap();
        Self {
            layout: Layout::new(&spec, special).unwrap(),
            tokenizer,
        }
    }

    fn json(checkpoint: &str) -> Self {
        let file = read(&format!("checkpoints/{checkpoint}/tokenizer.json"));
        Self::new(
            checkpoint,
            Tokenizer::from_json(&file, TextRules::None).unwrap(),
        )
    }

    fn sentencepiece(checkpoint: &str, file: &str, additions: Additions, rules: TextRules) -> Self {
        let bytes = read(&format!("checkpoints/{checkpoint}/{file}"));
        let tokenizer = Tokenizer::from_sentencepiece(file, &bytes, additions, rules).unwrap();
        Self::new(checkpoint, tokenizer)
    }

    fn chatglm3() -> Self {
        let additions = Additions::ChatGlm3;
        Self::sentencepiece("chatglm3", "tokenizer.model", additions, TextRules::None)
    }

    fn encode(&self, template: Option<&str>, conversation: &Conversation) -> Vec<TokenId> {
        let chat = Chat::new(&self.layout, template).unwrap();
        chat.encode(&self.tokenizer, &self.layout, conversation)
            .unwrap()
    }

    fn plain(&self, text: &str) -> Vec<TokenId> {
        self.tokenizer.encode_plain(text).unwrap()
    }

    fn special(&self, name: &str) -> TokenId {
        self.tokenizer.special(name).unwrap()
    }
}

fn talk(messages: &[(Role, &str)]) -> Conversation {
    Conversation {
        messages: (messages.iter())
            .map(|(role, text)| Message::new(*role, *text))
            .collect(),
        tools: Vec::new(),
    }
}

fn weather() -> Value {
    json!({"type": "function", "function": {"name": "weather", "description": "d", "parameters": {}}})
}

// === From elsewhere ===

#[test]
fn templates_give_the_ids_of_jinja2_and_tokenizers() {
    let golden: Value = serde_json::from_slice(&read("chat_golden.json")).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 12);
    for case in cases {
        let model = Model::json(case["checkpoint"].as_str().unwrap());
        let template = golden["templates"][case["template"].as_str().unwrap()].as_str();
        let mut messages: Vec<Message> = Vec::new();
        for said in case["messages"].as_array().unwrap() {
            let text = |key: &str| said[key].as_str().unwrap().to_owned();
            let mut message = Message::new(Role::of(&text("role")).unwrap(), text("content"));
            if !text("metadata").is_empty() {
                message.calls.push(ToolCall {
                    name: text("metadata"),
                    arguments: serde_json::from_str(&message.content).unwrap(),
                });
                message.content.clear();
            }
            messages.push(message);
        }
        let conversation = Conversation {
            messages,
            tools: case["tools"].as_array().unwrap().clone(),
        };
        let ids: Vec<u32> = (model.encode(template, &conversation).iter())
            .map(|id| id.0)
            .collect();
        let expected: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
        assert_eq!(ids, expected, "{}", case["name"]);
    }
}

// === Layouts that are ids ===

#[test]
fn chatglm3_encodes_each_part_by_itself() {
    let model = Model::chatglm3();
    let ids = model.encode(
        Some("its template is not what it reads"),
        &talk(&[
            (Role::System, "s"),
            (Role::User, "灯"),
            (Role::Assistant, "a"),
            (Role::User, "b"),
        ]),
    );
    let mut expected = vec![model.special("[gMASK]"), model.special("sop")];
    for (role, text) in [
        ("<|system|>", "s"),
        ("<|user|>", "灯"),
        ("<|assistant|>", "a"),
        ("<|user|>", "b"),
    ] {
        expected.push(model.special(role));
        expected.extend(model.plain("\n"));
        expected.extend(model.plain(text));
    }
    expected.push(model.special("<|assistant|>"));
    assert_eq!(ids, expected);
    // The published form: the line feed has a space mark of its own before it.
    assert_eq!(
        model.tokenizer.token_text(ids[3]).as_deref(),
        Some("\u{2581}")
    );
}

#[test]
fn chatglm3_reads_tools_and_calls() {
    let model = Model::chatglm3();
    let mut call = Message::new(Role::Assistant, "");
    call.calls.push(ToolCall {
        name: "weather".into(),
        arguments: json!({"city": "灯"}),
    });
    let conversation = Conversation {
        messages: vec![
            Message::new(Role::User, "a"),
            call,
            Message::new(Role::Tool, "12"),
        ],
        tools: vec![weather()],
    };
    let ids = model.encode(None, &conversation);
    let tools = "Answer the following questions as best as you can. You have access to the following tools:\n\
                 [\n    {\n        \"name\": \"weather\",\n        \"description\": \"d\",\n        \"parameters\": {}\n    }\n]";
    let mut expected = vec![model.special("[gMASK]"), model.special("sop")];
    for (role, metadata, text) in [
        ("<|system|>", "", tools),
        ("<|user|>", "", "a"),
        (
            "<|assistant|>",
            "weather",
            "```python\ntool_call(city='灯')\n```",
        ),
        ("<|observation|>", "", "12"),
    ] {
        expected.push(model.special(role));
        expected.extend(model.plain(&format!("{metadata}\n")));
        expected.extend(model.plain(text));
    }
    expected.push(model.special("<|assistant|>"));
    assert_eq!(ids, expected);
}

#[test]
fn rounds_are_counted_as_published() {
    let talked = talk(&[
        (Role::User, "q"),
        (Role::Assistant, "a"),
        (Role::User, "灯"),
    ]);
    let rules = TextRules::ChatGlm { id_offset: 0 };
    let one = Model::sentencepiece("chatglm-6b", "ice_text.model", Additions::None, rules);
    let first = talk(&[(Role::User, "灯")]);
    assert_eq!(one.encode(None, &first), one.plain("灯"));
    assert_eq!(
        one.encode(None, &talked),
        one.plain("[Round 0]\n问：q\n答：a\n[Round 1]\n问：灯\n答：")
    );
    let additions = Additions::ChatGlm2;
    let two = Model::sentencepiece("chatglm2", "tokenizer.model", additions, TextRules::None);
    let prefix = [two.special("[gMASK]"), two.special("sop")];
    let expected = |text: &str| [&prefix[..], &two.plain(text)].concat();
    assert_eq!(
        two.encode(None, &first),
        expected("[Round 1]\n\n问：灯\n\n答：")
    );
    assert_eq!(
        two.encode(None, &talked),
        expected("[Round 1]\n\n问：q\n\n答：a\n\n[Round 2]\n\n问：灯\n\n答：")
    );
    for order in [
        &[(Role::Assistant, "a")][..],
        &[(Role::User, "a"), (Role::User, "b")],
        &[(Role::User, "a"), (Role::Assistant, "b")],
        &[],
    ] {
        let chat = Chat::new(&two.layout, None).unwrap();
        let error = chat.encode(&two.tokenizer, &two.layout, &talk(order));
        assert_eq!(error.unwrap_err().code(), "bad_input");
    }
}

#[test]
fn glm4_without_a_template_has_its_layout() {
    let tokenizer = Tokenizer::from_tiktoken(
        &read("checkpoints/glm4-old/tokenizer.model"),
        Additions::Glm4,
    );
    let model = Model::new("glm4-old", tokenizer.unwrap());
    let ids = model.encode(None, &talk(&[(Role::User, "灯")]));
    let mut expected = vec![
        model.special("[gMASK]"),
        model.special("<sop>"),
        model.special("<|user|>"),
    ];
    expected.extend(model.plain("\n"));
    expected.extend(model.plain("灯"));
    expected.push(model.special("<|assistant|>"));
    assert_eq!(ids, expected);
}

#[test]
fn the_prefix_is_there_once() {
    let model = Model::json("glm4-hf");
    let hello = talk(&[(Role::User, "a")]);
    let prefix = [model.special("[gMASK]"), model.special("<sop>")];
    for template in [
        "[gMASK]<sop>{{ messages[0].content }}",
        "{{ messages[0].content }}",
    ] {
        let ids = model.encode(Some(template), &hello);
        assert_eq!(ids, [&prefix[..], &model.plain("a")].concat());
    }
}

// === Refusals ===

#[test]
fn broken_templates_and_refusals_are_told_apart() {
    let model = Model::json("glm4-hf");
    let error = Chat::new(&model.layout, Some("{% for x %}")).unwrap_err();
    assert_eq!(error.code(), "bad_template");
    let run = |template: &str, tools: Vec<Value>| {
        let chat = Chat::new(&model.layout, Some(template)).unwrap();
        let conversation = Conversation {
            tools,
            ..talk(&[(Role::User, "a")])
        };
        chat.encode(&model.tokenizer, &model.layout, &conversation)
            .unwrap_err()
    };
    let error = run("{{ raise_exception('no system message') }}", vec![]);
    assert_eq!(error.to_string(), "`messages`: no system message");
    assert_eq!(
        run("{{ messages[7].content.x }}", vec![]).code(),
        "bad_template"
    );
    assert_eq!(run("{{ nothing() }}", vec![]).code(), "bad_template");
    // A template that does not end.
    let endless =
        "{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}";
    assert_eq!(run(endless, vec![]).code(), "bad_template");
    // Files are not reachable.
    assert_eq!(
        run("{% include '/etc/passwd' %}", vec![]).code(),
        "bad_template"
    );
    assert_eq!(
        run("{{ messages[0].content }}", vec![weather()]).code(),
        "unsupported_operation"
    );
    assert_eq!(
        run("{{ tools }}", vec![json!({"x": 1})]).code(),
        "bad_input"
    );
    let glm =
        Tokenizer::from_wordpiece(&read("checkpoints/glm-post/vocab.txt"), Additions::GlmBert);
    let glm = Model::new("glm-large", glm.unwrap());
    let error = Chat::new(&glm.layout, None).unwrap_err();
    assert_eq!(error.code(), "unsupported_operation");
}

#[test]
fn tools_reach_templates_that_look_for_them_in_a_message() {
    let model = Model::json("glm4-hf");
    let template = "{% for m in messages %}{% if m.tools is defined %}<|system|>{{ m.content }}\
                    {% for t in m.tools %}{{ t.name }}{% endfor %}{% else %}<|user|>{{ m.content }}{% endif %}{% endfor %}";
    for (messages, expected) in [
        (talk(&[(Role::User, "a")]), "weather"),
        (
            talk(&[(Role::System, "s "), (Role::User, "a")]),
            "s weather",
        ),
    ] {
        let conversation = Conversation {
            tools: vec![weather()],
            ..messages
        };
        let ids = model.encode(Some(template), &conversation);
        let mut wanted = vec![
            model.special("[gMASK]"),
            model.special("<sop>"),
            model.special("<|system|>"),
        ];
        wanted.extend(model.plain(expected));
        wanted.push(model.special("<|user|>"));
        wanted.extend(model.plain("a"));
        assert_eq!(ids, wanted);
    }
}

// === Nobody speaks in another's role ===

const NAMES: [&str; 9] = [
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<|observation|>",
    "[gMASK]",
    "<sop>",
    "<eop>",
    "<|endoftext|>",
    "sop",
];

fn hostile() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        3 => prop::sample::select(NAMES.to_vec()).prop_map(str::to_owned),
        // Beginnings and ends of names, which may become whole by what stands beside them.
        3 => (prop::sample::select(NAMES.to_vec()), any::<prop::sample::Index>()).prop_map(
            |(name, at)| name[at.index(name.len())..].to_owned()
        ),
        3 => (prop::sample::select(NAMES.to_vec()), any::<prop::sample::Index>()).prop_map(
            |(name, at)| name[..at.index(name.len())].to_owned()
        ),
        2 => "[a-z \n<>|灯\u{FDD0}\u{FDD1}]{0,6}",
        1 => Just(" ".to_owned()),
    ];
    prop::collection::vec(part, 0..8).prop_map(|parts| parts.concat())
}

/// Content directly beside content and beside parts of names; trimmed, and taken apart by words.
const TRAP: &str = "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ m.content }}|>\
                    {{ m.content }}>{{ m.content }}<|{{ m.content }}<{{ m.content | trim }}<|{{ m.content | trim }}|>\
                    {% for word in m.content.split() %}<{{ word }}>{{ word }}|>{{ word }}<|{% endfor %}\
                    {{ m.content.split() | join }}{% endfor %}<|assistant|>";

proptest! {
    #[test]
    fn role_tokens_never_come_out_of_what_was_said(texts in prop::collection::vec(hostile(), 1..4)) {
        static GLM4: LazyLock<Model> = LazyLock::new(|| Model::json("glm4-hf"));
        static CHATGLM3: LazyLock<Model> = LazyLock::new(Model::chatglm3);
        let (glm4, chatglm3) = (&*GLM4, &*CHATGLM3);
        let messages: Vec<(Role, &str)> = texts.iter().map(|t| (Role::User, t.as_str())).collect();
        let conversation = talk(&messages);
        let line = "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}<|assistant|>";
        let mut expected = vec![glm4.special("[gMASK]"), glm4.special("<sop>")];
        expected.extend(texts.iter().map(|_| glm4.special("<|user|>")));
        expected.push(glm4.special("<|assistant|>"));
        for template in [Some(line), Some(TRAP), None] {
            let ids = glm4.encode(template, &conversation);
            let specials: Vec<TokenId> = (ids.iter().copied())
                .filter(|id| glm4.tokenizer.is_special(*id))
                .collect();
            prop_assert_eq!(&specials, &expected);
        }
        // The text itself arrives unharmed.
        let ids = glm4.encode(Some(line), &conversation);
        let written: String = texts.iter().map(|t| format!("\n{t}")).collect();
        prop_assert_eq!(glm4.tokenizer.decode(&ids), written);

        let ids = chatglm3.encode(None, &conversation);
        let specials = ids.iter().filter(|id| chatglm3.tokenizer.is_special(**id)).count();
        // Two in front, one for each message, one for the assistant; unknown characters have no role.
        let unknown = ids.iter().filter(|id| chatglm3.tokenizer.is_unknown(**id)).count();
        prop_assert_eq!(specials - unknown, texts.len() + 3);
    }
}
