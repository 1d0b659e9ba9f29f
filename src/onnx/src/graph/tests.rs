use std::collections::{HashMap, HashSet};
use std::path::Path;

use glm::ModelSpec;
use glm::spec::{Hints, Visibility};

use super::*;
use crate::paging::{self, Outcome};

const FIXTURES: &[&str] = &[
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

fn specs() -> Vec<ModelSpec> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/checkpoints");
    FIXTURES
        .iter()
        .map(|name| {
            let bytes = std::fs::read(folder.join(name).join("config.json")).unwrap();
            let config = serde_json::from_slice(&bytes).unwrap();
            ModelSpec::from_config(&config, &Hints::default()).unwrap()
        })
        .collect()
}

fn options(scheme: Option<Scheme>, tied_head: bool) -> Options {
    let layers = scheme.map_or(Precision::Full, |scheme| {
        Precision::Quantised(Quantisation {
            scheme,
            block: Block::Of(32),
        })
    });
    Options {
        layers,
        head: Precision::Full,
        embedding: Table::Full,
        tied_head,
        max_positions: 2048,
        fixed: None,
    }
}

fn all() -> impl Iterator<Item = (ModelSpec, Options)> {
    let schemes = [
        None,
        Some(Scheme::Int8),
        Some(Scheme::Int4),
        Some(Scheme::Int4ZeroPoint),
    ];
    specs().into_iter().flat_map(move |spec| {
        schemes.into_iter().flat_map(move |scheme| {
            let spec = spec.clone();
            let layers = options(scheme, false).layers;
            let table = match layers {
                Precision::Full => Table::Half,
                Precision::Quantised(how) => Table::Quantised(how),
            };
            [false, true]
                .map(|tied| options(scheme, tied))
                .into_iter()
                .flat_map(move |plain| {
                    let small = Options {
                        head: layers,
                        embedding: table,
                        ..plain
                    };
                    [plain, small]
                })
                .map(move |options| (spec.clone(), options))
        })
    })
}

#[test]
fn every_tensor_is_made_once_and_before_it_is_read() {
    for (spec, options) in all() {
        let plan = build(&spec, &options);
        let graph = plan.model.graph.as_ref().unwrap();
        let mut known: HashSet<&str> = HashSet::from([""]);
        known.extend(graph.input.iter().map(|input| input.name.as_str()));
        for (tensor, constant) in graph.initializer.iter().zip(&plan.constants) {
            assert_eq!(tensor.name, constant.name);
            assert!(known.insert(&tensor.name), "{} twice", tensor.name);
        }
        for node in &graph.node {
            for input in &node.input {
                assert!(known.contains(input.as_str()), "{input} is not made yet");
            }
            for output in node.output.iter().filter(|output| !output.is_empty()) {
                assert!(known.insert(output), "{output} twice");
            }
        }
        for output in &graph.output {
            assert!(known.contains(output.name.as_str()), "{}", output.name);
        }
    }
}

#[test]
fn the_rewrite_for_paged_caches_knows_every_node() {
    for (spec, options) in all() {
        let mut plan = build(&spec, &options);
        place(&mut plan, "model.onnx.data");
        // What lies in the graph file has no numbers yet; the rewrite checks lengths.
        let graph = plan.model.graph.as_mut().unwrap();
        for (tensor, constant) in graph.initializer.iter_mut().zip(&plan.constants) {
            if tensor.data_location == 0 && tensor.raw_data.is_empty() {
                tensor.raw_data = vec![0; usize::try_from(constant.bytes()).unwrap()];
            }
        }
        let paged = match paging::page(&plan.model) {
            Outcome::Paged(paged) => paged,
            Outcome::Unmodified(unknown) => panic!("{:?}: {unknown}", spec.family),
        };
        assert_eq!(paged.description.attention.len(), spec.layers);
        assert_eq!(paged.description.vocabulary, spec.vocab_rows);
        for layer in &paged.description.attention {
            assert_eq!(
                (layer.heads, layer.kv_heads, layer.head_dim),
                (spec.heads, spec.kv_heads, spec.head_dim)
            );
        }
        let positions = match spec.visibility() {
            Visibility::Causal => paging::PositionInput::None,
            Visibility::PrefixLm => paging::PositionInput::Two("position_ids".into()),
        };
        assert_eq!(paged.description.positions, positions);
    }
}

#[test]
fn a_tied_head_is_stored_once() {
    let spec = &specs()[0];
    let table = |tied| {
        build(spec, &options(None, tied))
            .constants
            .into_iter()
            .filter(|constant| {
                matches!(
                    constant.source,
                    Source::Matrix(Matrix::Embedding | Matrix::Head)
                )
            })
            .count()
    };
    assert_eq!((table(true), table(false)), (1, 2));
}

#[test]
fn a_tied_head_of_the_same_quantisation_reads_the_bytes_of_the_table() {
    let how = Quantisation {
        scheme: Scheme::Int8,
        block: Block::Row,
    };
    let mut plan = build(
        &specs()[0],
        &Options {
            head: Precision::Quantised(how),
            embedding: Table::Quantised(how),
            ..options(None, true)
        },
    );
    place(&mut plan, "data");
    let graph = plan.model.graph.unwrap();
    let place = |name: &str| {
        let tensor = graph.initializer.iter().find(|tensor| tensor.name == name);
        tensor.unwrap().external_data.clone()
    };
    assert_eq!(place("embedding.values"), place("head.values"));
    assert_eq!(place("embedding.values").len(), 3);
}

#[test]
fn large_constants_lie_apart_and_aligned() {
    for (spec, options) in all() {
        let mut plan = build(&spec, &options);
        let length = place(&mut plan, "data");
        let mut end = 0;
        let mut places = HashMap::new();
        for (tensor, constant) in plan
            .model
            .graph
            .unwrap()
            .initializer
            .iter()
            .zip(&plan.constants)
        {
            assert_eq!(
                tensor.data_location == 1,
                constant.bytes() > INLINE_LIMIT,
                "{}",
                constant.name
            );
            if tensor.data_location == 1 {
                let number = |place: usize| tensor.external_data[place].value.parse::<u64>();
                let (offset, bytes) = (number(1).unwrap(), number(2).unwrap());
                assert_eq!((offset % ALIGNMENT, bytes), (0, constant.bytes()));
                match places.insert(offset, &constant.source) {
                    Some(other) => assert_eq!(other, &constant.source),
                    None => {
                        assert!(offset >= end);
                        end = offset + bytes;
                    }
                }
            }
        }
        assert_eq!(end, length);
    }
}

#[test]
fn a_rotation_turns_by_position_times_frequency() {
    let glm::spec::PositionEncoding::Rotary(rotary) = specs()
        .iter()
        .find(|spec| spec.visibility() == Visibility::Causal)
        .unwrap()
        .positions
    else {
        panic!("causal families rotate");
    };
    let cos = rotation_rows(Rotation::Cosines(rotary), 0, 8);
    let sin = rotation_rows(Rotation::Sines(rotary), 0, 8);
    let half = rotary.dims / 2;
    assert_eq!(cos.len(), 8 * half);
    for position in 0..8_u8 {
        // The first frequency is 1 whatever the base.
        let at = usize::from(position) * half;
        assert!((cos[at] - f32::from(position).cos()).abs() < 1e-6);
        assert!((sin[at] - f32::from(position).sin()).abs() < 1e-6);
    }
    let later = rotation_rows(Rotation::Cosines(rotary), 5, 3);
    assert_eq!(later, cos[5 * half..]);
}
