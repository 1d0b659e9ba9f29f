//! Attention against f64 over random histories, and a sequence against itself
//! in other company.

mod support;

#[cfg(test)]
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss,
    reason = "the numbers of these tests are small"
)]
mod tests {
    use std::collections::HashMap;

    use crate::support::{Random, Threads};
    use glm_kernels::{
        AttentionParams, Isa, Kernels, KvCache, KvLayout, KvType, Parallel, Qkv, Rotary,
        RotaryStyle, Serial, StepRow,
    };
    use proptest::prelude::*;

    /// Positions of the rotation tables.
    const POSITIONS: usize = 512;

    /// Shape of a layer and how it rotates.
    #[derive(Clone, Debug)]
    struct Shape {
        layers: usize,
        kv_heads: usize,
        group: usize,
        dim: usize,
        dtype: KvType,
        rotary: Option<(RotaryStyle, usize, bool)>,
        form: u8,
    }

    impl Shape {
        fn layout(&self) -> KvLayout {
            KvLayout {
                layers: self.layers,
                kv_heads: self.kv_heads,
                head_dim: self.dim,
                dtype: self.dtype,
                blocks: 64,
            }
        }
    }

    fn shape() -> impl Strategy<Value = Shape> {
        let dims = prop_oneof![
            Just(8),
            Just(16),
            Just(24),
            Just(32),
            Just(40),
            Just(64),
            Just(80),
            Just(128),
            Just(256)
        ];
        let group = prop_oneof![4 => 1..6_usize, 1 => Just(16), 1 => Just(40)];
        let dtype = prop_oneof![Just(KvType::F32), Just(KvType::F16), Just(KvType::Int8)];
        let style = prop_oneof![Just(RotaryStyle::Half), Just(RotaryStyle::Interleaved)];
        let rotary = proptest::option::of((style, 1..=4_usize, any::<bool>()));
        (1..3_usize, 1..4_usize, group, dims, dtype, rotary, 0..3_u8).prop_map(
            |(layers, kv_heads, group, dim, dtype, rotary, form)| Shape {
                layers,
                kv_heads,
                group,
                dim,
                dtype,
                // Quarters of the head, or of its half where both halves turn.
                rotary: rotary.map(|(style, quarters, two)| {
                    let most = if two { dim / 2 } else { dim };
                    (style, (most * quarters / 4).max(2) / 2 * 2, two)
                }),
                form,
            },
        )
    }

    /// What happens to the cache.
    #[derive(Clone, Debug)]
    enum Act {
        /// Sequences, how many tokens each gets, and whether they all see each other.
        Step(Vec<(u64, usize, bool)>),
        Abandon(u64, usize),
        Fork(u64, u64, usize),
        Truncate(u64, usize),
        Release(u64),
        Shrink,
    }

    fn act() -> impl Strategy<Value = Act> {
        let run = (
            0..5_u64,
            prop_oneof![3 => Just(1_usize), 2 => 1..40_usize, 1 => 40..100_usize],
            any::<bool>(),
        );
        prop_oneof![
            6 => proptest::collection::vec(run, 1..5).prop_map(Act::Step),
            1 => (0..5_u64, 1..70_usize).prop_map(|(s, n)| Act::Abandon(s, n)),
            2 => (0..5_u64, 0..5_u64, 0..100_usize).prop_map(|(a, b, n)| Act::Fork(a, b, n)),
            1 => (0..5_u64, 0..100_usize).prop_map(|(s, n)| Act::Truncate(s, n)),
            1 => (0..5_u64).prop_map(Act::Release),
            1 => Just(Act::Shrink),
        ]
    }

    /// Angles of a real model, so that tables hold what they would.
    fn tables(dims: usize) -> (Vec<f32>, Vec<f32>) {
        let mut cos = Vec::new();
        let mut sin = Vec::new();
        for position in 0..POSITIONS {
            for i in 0..dims / 2 {
                let angle = position as f64 * 10_000_f64.powf(-2.0 * i as f64 / dims as f64);
                cos.push(angle.cos() as f32);
                sin.push(angle.sin() as f32);
            }
        }
        (cos, sin)
    }

    /// The twin: keys and values of a sequence, `[layer][token][kv head]`, in f64.
    #[derive(Clone, Debug, Default)]
    struct History {
        keys: Vec<Vec<Vec<Vec<f64>>>>,
        values: Vec<Vec<Vec<Vec<f64>>>>,
    }

    struct Twin<'a> {
        shape: &'a Shape,
        cos: &'a [f32],
        sin: &'a [f32],
    }

    impl Twin<'_> {
        fn turn(&self, x: &[f32], position: [u32; 2]) -> Vec<f64> {
            let mut x: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
            let Some((style, dims, two)) = self.shape.rotary else {
                return x;
            };
            let parts = if two { 2 } else { 1 };
            for (part, position) in position[..parts].iter().enumerate() {
                for i in 0..dims / 2 {
                    let at = *position as usize * dims / 2 + i;
                    let (c, s) = (f64::from(self.cos[at]), f64::from(self.sin[at]));
                    let (a, b) = match style {
                        RotaryStyle::Half => (i, i + dims / 2),
                        RotaryStyle::Interleaved => (2 * i, 2 * i + 1),
                    };
                    let (a, b) = (part * dims + a, part * dims + b);
                    (x[a], x[b]) = (x[a] * c - x[b] * s, x[a] * s + x[b] * c);
                }
            }
            x
        }

        fn look(
            &self,
            q: &[f64],
            keys: &[Vec<Vec<f64>>],
            values: &[Vec<Vec<f64>>],
            head: usize,
        ) -> Vec<f64> {
            let scale = 1.0 / (self.shape.dim as f64).sqrt();
            let scores: Vec<f64> = keys
                .iter()
                .map(|key| key[head].iter().zip(q).map(|(k, q)| k * q).sum::<f64>() * scale)
                .collect();
            let top = scores.iter().copied().fold(f64::MIN, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
            let total: f64 = weights.iter().sum();
            (0..self.shape.dim)
                .map(|d| {
                    let sum: f64 = weights
                        .iter()
                        .zip(values)
                        .map(|(w, v)| w * v[head][d])
                        .sum();
                    sum / total
                })
                .collect()
        }
    }

    /// Queries, keys and values of one token of one layer, row by row.
    struct Token {
        q: Vec<f32>,
        k: Vec<f32>,
        v: Vec<f32>,
    }

    /// Puts tokens into the layout of `form`, calls attention, and gives the output row by row.
    fn attend(
        isa: Isa,
        cache: &mut KvCache,
        layer: usize,
        shape: &Shape,
        (cos, sin): (&[f32], &[f32]),
        tokens: &[Token],
        par: &dyn Parallel,
    ) -> Vec<Vec<f32>> {
        let heads = shape.kv_heads * shape.group;
        let n = tokens.len();
        let dim = shape.dim;
        let params = AttentionParams {
            heads,
            scale: 1.0 / (dim as f32).sqrt(),
            rotary: shape.rotary.map(|(style, dims, two_dimensional)| Rotary {
                style,
                dims,
                two_dimensional,
                cos,
                sin,
            }),
        };
        let by_head = |count: usize, get: &dyn Fn(&Token) -> &[f32]| -> Vec<f32> {
            (0..count)
                .flat_map(|head| tokens.iter().map(move |token| (head, token)))
                .flat_map(|(head, token)| get(token)[head * dim..(head + 1) * dim].to_vec())
                .collect()
        };
        let by_row = |get: &dyn Fn(&Token) -> &[f32]| -> Vec<f32> {
            tokens
                .iter()
                .flat_map(|token| get(token).to_vec())
                .collect()
        };
        let mut out = vec![f32::NAN; n * heads * dim];
        let kernels = Kernels::with_isa(isa).unwrap();
        let (q, k, v);
        let qkv = match shape.form {
            0 => {
                q = (tokens.iter())
                    .flat_map(|t| [&t.q[..], &t.k, &t.v].concat())
                    .collect::<Vec<f32>>();
                Qkv::Packed(&q)
            }
            1 => {
                (q, k, v) = (by_row(&|t| &t.q), by_row(&|t| &t.k), by_row(&|t| &t.v));
                Qkv::Rows {
                    q: &q,
                    k: &k,
                    v: &v,
                }
            }
            _ => {
                q = by_head(heads, &|t| &t.q);
                k = by_head(shape.kv_heads, &|t| &t.k);
                v = by_head(shape.kv_heads, &|t| &t.v);
                Qkv::Heads {
                    q: &q,
                    k: &k,
                    v: &v,
                }
            }
        };
        kernels
            .attention(cache, layer, &params, qkv, &mut out, par)
            .unwrap();
        (0..n)
            .map(|row| {
                (0..heads * dim)
                    .map(|at| match shape.form {
                        2 => out[(at / dim * n + row) * dim + at % dim],
                        _ => out[row * heads * dim + at],
                    })
                    .collect()
            })
            .collect()
    }

    /// Numbers of a token: the same wherever and whenever it runs.
    fn token(shape: &Shape, seed: u64, layer: usize, row: StepRow) -> Token {
        let place = u64::from(row.position[0]) << 8 | u64::from(row.position[1]);
        let mut random = Random(seed ^ (place << 20) ^ ((layer as u64) << 60) ^ row.seq << 50);
        let heads = shape.kv_heads * shape.group;
        Token {
            q: random
                .floats(heads * shape.dim)
                .iter()
                .map(|x| x * 2.0)
                .collect(),
            k: random
                .floats(shape.kv_heads * shape.dim)
                .iter()
                .map(|x| x * 2.0)
                .collect(),
            v: random.floats(shape.kv_heads * shape.dim),
        }
    }

    fn tolerance(dtype: KvType) -> f64 {
        // Half a step of values within -1..1, and what half a step of keys
        // within -3..3 does to scores.
        match dtype {
            KvType::F32 => 1e-5,
            KvType::F16 => 4e-3,
            KvType::Int8 => 5e-2,
        }
    }

    fn rows_of(seq: u64, start: usize, count: usize, all: bool) -> Vec<StepRow> {
        (start..start + count)
            .map(|index| StepRow {
                seq,
                position: [index as u32, (index % 7) as u32],
                visible: if all {
                    (start + count) as u32
                } else {
                    index as u32 + 1
                },
            })
            .collect()
    }

    fn run(isa: Isa, shape: &Shape, acts: &[Act], seed: u64) -> Result<(), TestCaseError> {
        let dims = shape.rotary.map_or(2, |(_, dims, _)| dims);
        let (cos, sin) = tables(dims);
        let twin = Twin {
            shape,
            cos: &cos,
            sin: &sin,
        };
        let mut cache = KvCache::new(&shape.layout()).unwrap();
        let mut histories: HashMap<u64, History> = HashMap::new();
        let length = |histories: &HashMap<u64, History>, seq| {
            histories.get(&seq).map_or(0, |h: &History| h.keys[0].len())
        };
        for (number, act) in acts.iter().enumerate() {
            let par: &dyn Parallel = if number % 2 == 0 { &Threads } else { &Serial };
            match act {
                Act::Step(runs) => {
                    let mut rows = Vec::new();
                    for (at, (seq, count, all)) in runs.iter().enumerate() {
                        let start = length(&histories, *seq);
                        if runs[..at].iter().any(|(s, ..)| s == seq) || start + count > 300 {
                            continue;
                        }
                        rows.extend(rows_of(*seq, start, *count, *all));
                    }
                    if cache.begin(&rows).is_err() {
                        continue;
                    }
                    for row in &rows {
                        histories.entry(row.seq).or_insert_with(|| History {
                            keys: vec![Vec::new(); shape.layers],
                            values: vec![Vec::new(); shape.layers],
                        });
                    }
                    for layer in 0..shape.layers {
                        let tokens: Vec<Token> = rows
                            .iter()
                            .map(|row| token(shape, seed, layer, *row))
                            .collect();
                        let found =
                            attend(isa, &mut cache, layer, shape, (&cos, &sin), &tokens, par);
                        for (row, token) in rows.iter().zip(&tokens) {
                            let history = histories.get_mut(&row.seq).unwrap();
                            let keys =
                                (token.k.chunks(shape.dim)).map(|k| twin.turn(k, row.position));
                            history.keys[layer].push(keys.collect());
                            let values = (token.v.chunks(shape.dim))
                                .map(|v| v.iter().map(|x| f64::from(*x)).collect());
                            history.values[layer].push(values.collect());
                        }
                        for ((row, token), found) in rows.iter().zip(&tokens).zip(&found) {
                            let history = &histories[&row.seq];
                            let seen = row.visible as usize;
                            for (head, q) in token.q.chunks(shape.dim).enumerate() {
                                let q = twin.turn(q, row.position);
                                let exact = twin.look(
                                    &q,
                                    &history.keys[layer][..seen],
                                    &history.values[layer][..seen],
                                    head / shape.group,
                                );
                                for (d, exact) in exact.iter().enumerate() {
                                    let found = f64::from(found[head * shape.dim + d]);
                                    prop_assert!(
                                        (found - exact).abs() <= tolerance(shape.dtype),
                                        "{isa}, {row:?}, head {head}, element {d}: {found}, not {exact}"
                                    );
                                }
                            }
                        }
                    }
                    cache.commit();
                }
                Act::Abandon(seq, count) => {
                    let rows = rows_of(*seq, length(&histories, *seq), *count, false);
                    if cache.begin(&rows).is_ok() {
                        // Other numbers than the sequence will really get.
                        let tokens: Vec<Token> = rows
                            .iter()
                            .map(|row| token(shape, !seed, 0, *row))
                            .collect();
                        attend(isa, &mut cache, 0, shape, (&cos, &sin), &tokens, par);
                        cache.rollback();
                    }
                }
                Act::Fork(parent, child, count) => {
                    let count = (*count).min(length(&histories, *parent));
                    if cache.fork(*parent, *child, count).is_ok() {
                        let mut copy = histories[parent].clone();
                        for layer in 0..shape.layers {
                            copy.keys[layer].truncate(count);
                            copy.values[layer].truncate(count);
                        }
                        histories.insert(*child, copy);
                    }
                }
                Act::Truncate(seq, count) => {
                    cache.truncate(*seq, *count);
                    if let Some(history) = histories.get_mut(seq) {
                        for layer in 0..shape.layers {
                            history.keys[layer].truncate(*count);
                            history.values[layer].truncate(*count);
                        }
                    }
                }
                Act::Release(seq) => {
                    cache.release(*seq);
                    histories.remove(seq);
                }
                Act::Shrink => {
                    cache.shrink();
                }
            }
            for seq in 0..5 {
                prop_assert_eq!(cache.len(seq), length(&histories, seq));
            }
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn histories_match_f64(
            shape in shape(),
            acts in proptest::collection::vec(act(), 1..10),
            seed in any::<u64>(),
        ) {
            for isa in Isa::available() {
                run(isa, &shape, &acts, seed)?;
            }
        }

        #[test]
        fn a_sequence_does_not_depend_on_its_company(
            shape in shape(),
            prompt in 1..90_usize,
            others in proptest::collection::vec(1..60_usize, 1..8),
            seed in any::<u64>(),
        ) {
            let dims = shape.rotary.map_or(2, |(_, dims, _)| dims);
            let (cos, sin) = tables(dims);
            for isa in Isa::available() {
                let mut answers = Vec::new();
                for company in [false, true] {
                    let mut cache = KvCache::new(&shape.layout()).unwrap();
                    let mut start = 0;
                    let mut answer = Vec::new();
                    // A prompt in one piece, three single tokens.
                    for count in [prompt, 1, 1, 1] {
                        let mut rows = Vec::new();
                        if company {
                            let (seq, count) = (1 + start as u64, others[start % others.len()]);
                            rows.extend(rows_of(100 + seq, 0, count, false));
                        }
                        let first = rows.len();
                        rows.extend(rows_of(1, start, count, start == 0));
                        if company {
                            for (seq, count) in others.iter().enumerate().take(3) {
                                let old = cache.len(10 + seq as u64);
                                rows.extend(rows_of(10 + seq as u64, old, 1 + count % 2, false));
                            }
                        }
                        cache.begin(&rows).unwrap();
                        let tokens: Vec<Token> =
                            rows.iter().map(|row| token(&shape, seed, 0, *row)).collect();
                        let par: &dyn Parallel = if company { &Threads } else { &Serial };
                        let out = attend(isa, &mut cache, 0, &shape, (&cos, &sin), &tokens, par);
                        for out in &out[first..first + count] {
                            answer.extend(out.iter().map(|x| x.to_bits()));
                        }
                        cache.commit();
                        start += count;
                    }
                    answers.push(answer);
                }
                prop_assert!(answers[0] == answers[1], "{} differs in company", isa);
            }
        }
    }

    #[test]
    fn a_call_that_cannot_be_right_is_refused() {
        let layout = KvLayout {
            layers: 1,
            kv_heads: 2,
            head_dim: 16,
            dtype: KvType::F16,
            blocks: 2,
        };
        let mut cache = KvCache::new(&layout).unwrap();
        let kernels = Kernels::detect();
        let (cos, sin) = tables(16);
        let mut out = [0.0; 64];
        let qkv = [0.0; 128];
        let params = AttentionParams {
            heads: 4,
            scale: 1.0,
            rotary: None,
        };
        let call = |cache: &mut KvCache,
                    layer,
                    params: &AttentionParams<'_>,
                    qkv: &[f32],
                    out: &mut [f32]| {
            kernels.attention(cache, layer, params, Qkv::Packed(qkv), out, &Serial)
        };
        let code = call(&mut cache, 0, &params, &qkv, &mut out)
            .unwrap_err()
            .code();
        assert_eq!(code, "kv_no_step");
        let row = StepRow {
            seq: 1,
            position: [600, 0],
            visible: 1,
        };
        cache.begin(&[row]).unwrap();
        let code = call(&mut cache, 1, &params, &qkv, &mut out)
            .unwrap_err()
            .code();
        assert_eq!(code, "kernel_index_outside");
        let code = call(&mut cache, 0, &params, &qkv[1..], &mut out)
            .unwrap_err()
            .code();
        assert_eq!(code, "kernel_shape");
        let code = call(&mut cache, 0, &params, &qkv, &mut out[1..])
            .unwrap_err()
            .code();
        assert_eq!(code, "kernel_shape");
        let odd = AttentionParams { heads: 3, ..params };
        let code = call(&mut cache, 0, &odd, &qkv, &mut out)
            .unwrap_err()
            .code();
        assert_eq!(code, "kernel_unsupported");
        let rotary = Rotary {
            style: RotaryStyle::Half,
            dims: 16,
            two_dimensional: false,
            cos: &cos,
            sin: &sin,
        };
        let far = AttentionParams {
            rotary: Some(rotary),
            ..params
        };
        let code = call(&mut cache, 0, &far, &qkv, &mut out)
            .unwrap_err()
            .code();
        assert_eq!(code, "kernel_index_outside");
        let wide = Rotary {
            two_dimensional: true,
            ..rotary
        };
        let wide = AttentionParams {
            rotary: Some(wide),
            ..params
        };
        let code = call(&mut cache, 0, &wide, &qkv, &mut out)
            .unwrap_err()
            .code();
        assert_eq!(code, "kernel_unsupported");
        call(&mut cache, 0, &params, &qkv, &mut out).unwrap();
    }
}
