//! Tables of the rotary embedding (RoFormer, section 3.2.2).

use glm::spec::Rotary;

/// Which table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rotation {
    /// Cosines of the angles.
    Cosines(Rotary),
    /// Sines of the angles.
    Sines(Rotary),
}

/// Rows `first..first + count` of a table, `[count, dims / 2]`.
///
/// Frequencies and angles are rounded to f32 as the reference code of every
/// family does, so that long texts turn by the angle the model was trained on.
pub fn rotation_rows(table: Rotation, first: usize, count: usize) -> Vec<f32> {
    let (Rotation::Cosines(rotary) | Rotation::Sines(rotary)) = table;
    let frequencies = frequencies(&rotary);
    let mut rows = Vec::with_capacity(count * frequencies.len());
    for position in first..first + count {
        rows.extend(frequencies.iter().map(|frequency| {
            let angle = f64::from(as_f32(position) * frequency);
            let value = match table {
                Rotation::Cosines(_) => angle.cos(),
                Rotation::Sines(_) => angle.sin(),
            };
            narrow(value)
        }));
    }
    rows
}

/// `theta^(-2j / dims)` for `j` below `dims / 2`.
fn frequencies(rotary: &Rotary) -> Vec<f32> {
    (0..rotary.dims / 2)
        .map(|j| {
            let exponent = 2.0 * f64::from(as_f32(j)) / f64::from(as_f32(rotary.dims));
            let frequency = rotary.theta.powf(-exponent);
            if rotary.f16_frequencies {
                half::f16::from_f64(frequency).to_f32()
            } else {
                narrow(frequency)
            }
        })
        .collect()
}

#[allow(clippy::cast_precision_loss, reason = "positions stay below 2^24")]
const fn as_f32(position: usize) -> f32 {
    position as f32
}

#[allow(clippy::cast_possible_truncation, reason = "rounding is the point")]
const fn narrow(x: f64) -> f32 {
    x as f32
}
