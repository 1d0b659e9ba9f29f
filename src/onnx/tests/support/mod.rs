//! Writes small checkpoints of both formats, right or wrong.
#![allow(dead_code, reason = "each test file uses a part")]

pub mod zip;

use std::path::{Path, PathBuf};

use glm::ModelSpec;
use glm::spec::Hints;
use serde_json::{Map, Value, json};
use zip::{ZipEntry, zip};

pub const FIXTURES: [&str; 10] = [
    "glm-large",
    "glm-post",
    "chatglm-6b",
    "chatglm2",
    "chatglm3",
    "glm4-old",
    "glm4-hf",
    "glm-edge",
    "glm-edge-untied",
    "glm4-0414",
];

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/fixtures/checkpoints")
        .join(name)
}

pub fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

pub fn spec_of(folder: &Path) -> ModelSpec {
    let tokenizer = json_of(&folder.join("tokenizer_config.json"));
    let hints = Hints {
        tokenizer_config: Some(&tokenizer),
        ..Hints::default()
    };
    ModelSpec::from_config(&json_of(&folder.join("config.json")), &hints).unwrap()
}

pub fn spec_from(config: &Value) -> ModelSpec {
    ModelSpec::from_config(config, &Hints::default()).unwrap()
}

/// Little-endian bytes of f32.
pub fn floats(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

/// Named f32 tensors.
pub type Tensors = Vec<(String, Vec<usize>, Vec<f32>)>;

/// A safetensors file with a header of the test's choice.
pub fn safetensors_with(header: &str, data: &[u8]) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(data);
    file
}

pub fn safetensors(tensors: &Tensors) -> Vec<u8> {
    let mut header = Map::new();
    let mut data = Vec::new();
    for (name, shape, values) in tensors {
        let start = data.len();
        data.extend(floats(values.iter().copied()));
        let entry = json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]});
        header.insert(name.clone(), entry);
    }
    safetensors_with(&Value::Object(header).to_string(), &data)
}

/// A `torch.save` archive of a pickle and numbered storages.
pub fn archive(pickle: &[u8], storages: &[&[u8]]) -> Vec<u8> {
    let names: Vec<_> = (0..storages.len())
        .map(|key| format!("archive/data/{key}"))
        .collect();
    let mut entries: Vec<ZipEntry<'_>> = vec![("archive/data.pkl", 0, pickle)];
    entries.extend(
        names
            .iter()
            .zip(storages)
            .map(|(name, bytes)| (&**name, 0, *bytes)),
    );
    zip(&entries)
}

/// Pickles by hand, protocol 2.
#[derive(Default)]
pub struct Pickle(pub Vec<u8>);

impl Pickle {
    pub fn text(&mut self, text: &str) {
        self.0.push(b'X');
        let length = u32::try_from(text.len()).unwrap();
        self.0.extend(length.to_le_bytes());
        self.0.extend(text.as_bytes());
    }

    pub fn int(&mut self, n: i32) {
        self.0.push(b'J');
        self.0.extend(n.to_le_bytes());
    }

    pub fn global(&mut self, module: &str, name: &str) {
        self.0.extend(format!("c{module}\n{name}\n").as_bytes());
    }

    pub fn ints(&mut self, ints: &[i32]) {
        self.0.push(b'(');
        for n in ints {
            self.int(*n);
        }
        self.0.push(b't');
    }

    /// `_rebuild_tensor_v2` of storage `key`.
    pub fn tensor(&mut self, view: &ViewOf<'_>) {
        self.global("torch._utils", "_rebuild_tensor_v2");
        self.0.extend(b"((");
        self.text("storage");
        self.global("torch", view.class);
        self.text(view.key);
        self.text("cpu");
        self.int(view.elements);
        self.0.extend(b"tQ");
        self.int(view.first);
        self.ints(view.shape);
        self.ints(view.strides);
        self.0.extend(b"\x89");
        self.global("collections", "OrderedDict");
        self.0.extend(b")RtR");
    }

    /// `OrderedDict` of named tensors.
    pub fn dictionary(tensors: &[(&str, ViewOf<'_>)]) -> Vec<u8> {
        let mut pickle = Self(b"\x80\x02".to_vec());
        pickle.global("collections", "OrderedDict");
        pickle.0.extend(b")R(");
        for (name, view) in tensors {
            pickle.text(name);
            pickle.tensor(view);
        }
        pickle.0.extend(b"u.");
        pickle.0
    }
}

/// A tensor of a pickle.
#[derive(Clone, Copy)]
pub struct ViewOf<'a> {
    pub class: &'a str,
    pub key: &'a str,
    pub elements: i32,
    pub first: i32,
    pub shape: &'a [i32],
    pub strides: &'a [i32],
}

impl Default for ViewOf<'_> {
    fn default() -> Self {
        Self {
            class: "FloatStorage",
            key: "0",
            elements: 6,
            first: 0,
            shape: &[2, 3],
            strides: &[3, 1],
        }
    }
}
