//! Products against f64, against each other on every instruction set, and a
//! row against itself in other company.

mod support;

#[cfg(test)]
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss,
    reason = "the numbers of these tests are small"
)]
mod tests {
    use crate::support::{Random, Threads};
    use glm_kernels::{
        Dense, DenseLayout, Floats, Isa, Kernels, Matrix, Quantised, Scratch, Serial, Table,
    };
    use half::f16;
    use proptest::prelude::*;

    /// Weights with everything that they borrow.
    #[derive(Debug)]
    struct Stored {
        outputs: usize,
        inputs: usize,
        bits: usize,
        block: usize,
        values: Vec<u8>,
        scales: Vec<f32>,
        zeros: Option<Vec<u8>>,
        bias: Option<Vec<f32>>,
    }

    impl Stored {
        fn new(random: &mut Random, [outputs, inputs, bits, block]: [usize; 4]) -> Self {
            let blocks = inputs.div_ceil(block);
            let zero_row = (blocks * bits).div_ceil(8);
            let zeros = random.next().is_multiple_of(2);
            let bias = random.next().is_multiple_of(2);
            Self {
                outputs,
                inputs,
                bits,
                block,
                values: random.bytes(outputs * blocks * block * bits / 8),
                scales: random.floats(outputs * blocks),
                zeros: zeros.then(|| random.bytes(outputs * zero_row)),
                bias: bias.then(|| random.floats(outputs)),
            }
        }

        fn matrix(&self) -> Quantised<'_> {
            let mut matrix = Quantised::new(
                self.outputs,
                self.inputs,
                self.bits,
                self.block,
                &self.values,
                &self.scales,
            )
            .unwrap();
            if let Some(zeros) = &self.zeros {
                matrix = matrix.with_zero_points(zeros).unwrap();
            }
            if let Some(bias) = &self.bias {
                matrix = matrix.with_bias(bias).unwrap();
            }
            matrix
        }

        /// One weight, read straight from the definition of the layout.
        fn weight(&self, output: usize, input: usize) -> f64 {
            let blocks = self.inputs.div_ceil(self.block);
            let block = input / self.block;
            let at = output * blocks * self.block + input;
            let nibble = |bytes: &[u8], at: usize| (bytes[at / 2] >> (4 * (at % 2))) & 15;
            let q = if self.bits == 8 {
                self.values[at]
            } else {
                nibble(&self.values, at)
            };
            let zero = match &self.zeros {
                None => 1 << (self.bits - 1),
                Some(zeros) if self.bits == 8 => zeros[output * blocks + block],
                Some(zeros) => nibble(&zeros[output * blocks.div_ceil(2)..], block),
            };
            (f64::from(q) - f64::from(zero)) * f64::from(self.scales[output * blocks + block])
        }

        /// The product in f64, and how far rounding of activations may move it:
        /// half a step of each group times the weights it meets.
        fn exact(&self, x: &[f32], output: usize) -> (f64, f64) {
            let group = self.block.min(64);
            let (mut sum, mut slack) = (0.0, 0.0);
            for (place, x) in x.chunks(group).enumerate() {
                let largest = x.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
                for (i, x) in x.iter().enumerate() {
                    let w = self.weight(output, place * group + i);
                    sum += w * f64::from(*x);
                    slack += w.abs() * f64::from(largest) * (0.5001 / 127.0 + 1e-5);
                }
            }
            let bias = self
                .bias
                .as_ref()
                .map_or(0.0, |bias| f64::from(bias[output]));
            (sum + bias, slack + 1e-5)
        }
    }

    fn product(isa: Isa, matrix: &Matrix<'_>, x: &[f32], parallel: bool) -> Vec<f32> {
        let rows = x.len() / matrix.inputs();
        // Wrong wherever a kernel forgets to write.
        let mut out = vec![f32::NAN; rows * matrix.outputs()];
        let kernels = Kernels::with_isa(isa).unwrap();
        let mut scratch = Scratch::default();
        let par: &dyn glm_kernels::Parallel = if parallel { &Threads } else { &Serial };
        kernels
            .matmul(matrix, x, &mut out, &mut scratch, par)
            .unwrap();
        out
    }

    fn bits(x: &[f32]) -> Vec<u32> {
        x.iter().map(|x| x.to_bits()).collect()
    }

    fn shape() -> impl Strategy<Value = ([usize; 4], usize, u64)> {
        let block = prop_oneof![Just(16), Just(32), Just(64), Just(128), Just(256)];
        let bits = prop_oneof![Just(4), Just(8)];
        // One row of whole registers has a loop of its own.
        let rows = prop_oneof![2 => Just(1), 3 => 1..9_usize, 1 => 9..70_usize];
        let inputs = prop_oneof![1..400_usize, (1..7_usize).prop_map(|lines| lines * 64)];
        (1..150_usize, inputs, bits, block, rows, any::<u64>())
            .prop_map(|(o, i, bits, block, rows, seed)| ([o, i, bits, block], rows, seed))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn quantised_products_are_right_and_the_same_everywhere((shape, rows, seed) in shape()) {
            let mut random = Random(seed);
            let stored = Stored::new(&mut random, shape);
            let matrix = Matrix::Quantised(stored.matrix());
            let x = random.floats(rows * stored.inputs);
            let scalar = product(Isa::Scalar, &matrix, &x, false);
            for (row, out) in scalar.chunks(stored.outputs).enumerate() {
                let x = &x[row * stored.inputs..(row + 1) * stored.inputs];
                for (output, found) in out.iter().enumerate() {
                    let (exact, slack) = stored.exact(x, output);
                    prop_assert!(
                        (f64::from(*found) - exact).abs() <= slack,
                        "row {row}, output {output}: {found}, not {exact} +- {slack}"
                    );
                }
            }
            for isa in Isa::available() {
                let found = product(isa, &matrix, &x, seed % 2 == 0);
                prop_assert_eq!(bits(&found), bits(&scalar), "{}", isa);
            }
        }

        #[test]
        fn a_row_does_not_depend_on_its_company((shape, rows, seed) in shape()) {
            let mut random = Random(seed);
            let stored = Stored::new(&mut random, shape);
            let plain = random.floats(stored.outputs * stored.inputs);
            let x = random.floats(rows * stored.inputs);
            let row = random.below(rows);
            let alone = &x[row * stored.inputs..(row + 1) * stored.inputs];
            let layout = if seed % 2 == 0 { DenseLayout::ByOutput } else { DenseLayout::ByInput };
            let dense = Dense::new(stored.outputs, stored.inputs, layout, Floats::F32(&plain)).unwrap();
            for matrix in [Matrix::Quantised(stored.matrix()), Matrix::Dense(dense)] {
                for isa in Isa::available() {
                    let one = product(isa, &matrix, alone, false);
                    let all = product(isa, &matrix, &x, true);
                    let all = &all[row * stored.outputs..(row + 1) * stored.outputs];
                    prop_assert_eq!(bits(&one), bits(all), "{}", isa);
                }
            }
        }

        #[test]
        fn plain_products_are_right((shape, rows, seed) in shape(), half in any::<bool>()) {
            let mut random = Random(seed);
            let [outputs, inputs, ..] = shape;
            let mut plain = random.floats(outputs * inputs);
            let halves: Vec<f16> = plain.iter().map(|x| f16::from_f32(*x)).collect();
            let data = if half {
                plain = halves.iter().map(|x| x.to_f32()).collect();
                Floats::F16(&halves)
            } else {
                Floats::F32(&plain)
            };
            let bias = random.floats(outputs);
            let x = random.floats(rows * inputs);
            for layout in [DenseLayout::ByOutput, DenseLayout::ByInput] {
                let dense = Dense::new(outputs, inputs, layout, data).unwrap().with_bias(&bias).unwrap();
                for isa in Isa::available() {
                    let found = product(isa, &Matrix::Dense(dense), &x, seed % 2 == 0);
                    for (at, found) in found.iter().enumerate() {
                        let (row, output) = (at / outputs, at % outputs);
                        let term = |input: usize| {
                            let w = match layout {
                                DenseLayout::ByOutput => plain[output * inputs + input],
                                DenseLayout::ByInput => plain[input * outputs + output],
                            };
                            f64::from(w) * f64::from(x[row * inputs + input])
                        };
                        let exact = (0..inputs).map(term).sum::<f64>() + f64::from(bias[output]);
                        prop_assert!((f64::from(*found) - exact).abs() < 1e-4, "{isa}: {found}, not {exact}");
                    }
                }
            }
        }

        #[test]
        fn rows_of_tables_are_what_is_stored((shape, _, seed) in shape()) {
            let mut random = Random(seed);
            let stored = Stored::new(&mut random, shape);
            let table = Table::Quantised(stored.matrix());
            let kernels = Kernels::detect();
            let id = random.below(stored.outputs);
            let back = id as i64 - stored.outputs as i64;
            let mut out = vec![f32::NAN; 2 * stored.inputs];
            kernels.rows(&table, &[id as i64, back], &mut out).unwrap();
            for (at, found) in out.iter().enumerate() {
                let exact = stored.weight(id, at % stored.inputs);
                prop_assert!((f64::from(*found) - exact).abs() <= exact.abs() * 1e-6);
            }
            let outside = stored.outputs as i64;
            prop_assert!(kernels.rows(&table, &[0, outside], &mut out).is_err());
        }
    }

    #[test]
    fn real_sizes_agree_on_every_instruction_set() {
        for (bits, block) in [(8, 32), (8, 128), (4, 32), (4, 128)] {
            let mut random = Random(7);
            let stored = Stored::new(&mut random, [80, 2048, bits, block]);
            let matrix = Matrix::Quantised(stored.matrix());
            for rows in [1, 2, 8, 16, 130] {
                let x = random.floats(rows * stored.inputs);
                let scalar = product(Isa::Scalar, &matrix, &x, false);
                for isa in Isa::available() {
                    let found = product(isa, &matrix, &x, true);
                    assert_eq!(bits_of(&found), bits_of(&scalar), "{isa}, {rows} rows");
                }
            }
        }
        fn bits_of(x: &[f32]) -> Vec<u32> {
            x.iter().map(|x| x.to_bits()).collect()
        }
    }

    #[test]
    fn extreme_weights_and_activations_do_not_overflow() {
        for isa in Isa::available() {
            for bits in [8, 4] {
                let (outputs, inputs) = (16, 512);
                for byte in [0x00, 0xff] {
                    let values = vec![byte; outputs * inputs * bits / 8];
                    let scales = vec![1.0; outputs * inputs / 32];
                    let weights =
                        Quantised::new(outputs, inputs, bits, 32, &values, &scales).unwrap();
                    let x: Vec<f32> = (0..inputs)
                        .map(|i| if i < 256 { 1.0 } else { -1.0 })
                        .collect();
                    let found = product(isa, &Matrix::Quantised(weights), &x, false);
                    assert!(found.iter().all(|x| x.abs() < 1e-3), "{isa}: {found:?}");
                    let ones = vec![1.0; inputs];
                    let found = product(isa, &Matrix::Quantised(weights), &ones, false);
                    let weight = if byte == 0 {
                        -(1 << (bits - 1))
                    } else {
                        (1 << (bits - 1)) - 1
                    };
                    let exact = weight as f32 * 512.0;
                    assert!(
                        found
                            .iter()
                            .all(|x| (x - exact).abs() <= exact.abs() * 1e-6),
                        "{isa}: {found:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_fault_in_one_row_shows_there_and_nowhere_else() {
        let mut random = Random(3);
        let stored = Stored::new(&mut random, [20, 64, 8, 32]);
        let matrix = Matrix::Quantised(stored.matrix());
        let good = random.floats(3 * 64);
        for bad in [f32::NAN, f32::INFINITY] {
            let mut x = good.clone();
            x[64 + 5] = bad;
            for isa in Isa::available() {
                let clean = product(isa, &matrix, &good, false);
                let found = product(isa, &matrix, &x, false);
                assert!(found[20..40].iter().all(|x| x.is_nan()));
                assert_eq!(found[..20], clean[..20]);
                assert_eq!(found[40..], clean[40..]);
            }
        }
    }

    #[test]
    fn wrong_sizes_are_refused() {
        let scales = [1.0; 4];
        let values = [0; 64];
        assert!(Quantised::new(2, 64, 8, 32, &values, &scales).is_err());
        assert!(Quantised::new(1, 64, 8, 24, &values, &scales[..2]).is_err());
        assert!(Quantised::new(1, 64, 5, 32, &values, &scales[..2]).is_err());
        assert!(Quantised::new(0, 64, 8, 32, &[], &[]).is_err());
        let weights = Quantised::new(1, 64, 8, 32, &values, &scales[..2]).unwrap();
        assert!(weights.with_bias(&[0.0; 2]).is_err());
        assert!(weights.with_zero_points(&[0; 3]).is_err());
        let matrix = Matrix::Quantised(weights);
        let mut scratch = Scratch::default();
        let kernels = Kernels::detect();
        let mut out = [0.0; 2];
        let refused = kernels.matmul(&matrix, &[0.0; 65], &mut out[..1], &mut scratch, &Serial);
        assert_eq!(refused.unwrap_err().code(), "kernel_shape");
        let refused = kernels.matmul(&matrix, &[0.0; 64], &mut out, &mut scratch, &Serial);
        assert_eq!(refused.unwrap_err().code(), "kernel_shape");
    }

    #[test]
    fn what_bounds_products_is_computed_and_not_assumed() {
        for isa in Isa::available() {
            let kernels = Kernels::with_isa(isa).unwrap();
            let least = kernels.multiply_bytes(1);
            // Whole registers of ones, none lost to a sum that ran over.
            assert!(least > 0 && least.is_multiple_of(16), "{isa}: {least}");
            let more = kernels.multiply_bytes(20_000);
            assert_eq!(more % least, 0, "{isa}: {more} of {least}");
            assert!(more >= 20_000 * 16, "{isa}: {more}");
            assert_eq!(kernels.multiply_bytes(0), 0, "{isa}");
        }
    }
}
