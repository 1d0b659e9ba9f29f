//! Log-probabilities of the distribution as the model gave it: before
//! penalties, bans, temperature and truncation.
//!
//! Natural logarithms, computed in `f64`. Logits that are not finite have
//! probability zero.

use std::cmp::Ordering;

use crate::{Error, Result, TokenId};

/// `ln(sum(exp(x)))` over the finite values, shifted by the largest so that it cannot overflow.
///
/// # Errors
/// [`Error::NoFiniteLogit`] when there is none.
pub fn log_sum_exp(logits: &[f32]) -> Result<f64> {
    let finite = || {
        logits
            .iter()
            .filter(|x| x.is_finite())
            .map(|x| f64::from(*x))
    };
    let max = finite().fold(f64::NEG_INFINITY, f64::max);
    if max == f64::NEG_INFINITY {
        return Err(Error::NoFiniteLogit);
    }
    Ok(max + finite().map(|x| (x - max).exp()).sum::<f64>().ln())
}

/// Log-probability of each of `ids`, in their order; minus infinity for an id without a finite logit.
///
/// # Errors
/// [`Error::NoFiniteLogit`] when no logit is finite.
pub fn of(logits: &[f32], ids: &[TokenId]) -> Result<Vec<f64>> {
    let total = log_sum_exp(logits)?;
    Ok(ids
        .iter()
        .map(|id| match logits.get(id.index()) {
            Some(x) if x.is_finite() => f64::from(*x) - total,
            _ => f64::NEG_INFINITY,
        })
        .collect())
}

/// The `count` most probable ids, best first, ties by id.
///
/// # Errors
/// [`Error::NoFiniteLogit`] when no logit is finite.
pub fn top(logits: &[f32], count: usize) -> Result<Vec<(TokenId, f64)>> {
    let total = log_sum_exp(logits)?;
    let mut best: Vec<(u32, f32)> = (0u32..)
        .zip(logits.iter().copied())
        .filter(|(_, x)| x.is_finite())
        .collect();
    keep_best(&mut best, count);
    Ok(best
        .into_iter()
        .map(|(id, x)| (TokenId(id), f64::from(x) - total))
        .collect())
}

/// Cuts to the `count` largest values and sorts them: largest first, ties by id.
pub(super) fn keep_best<T: PartialOrd>(items: &mut Vec<(u32, T)>, count: usize) {
    select_best(items, count);
    items.truncate(count);
    items.sort_unstable_by(best_first);
}

/// Moves the `count` best to the front, in no order.
pub(super) fn select_best<T: PartialOrd>(items: &mut [(u32, T)], count: usize) {
    if count > 0 && count < items.len() {
        items.select_nth_unstable_by(count - 1, best_first);
    }
}

/// Largest value first, ties by id. The values are finite, so they all compare.
pub(super) fn best_first<T: PartialOrd>(a: &(u32, T), b: &(u32, T)) -> Ordering {
    b.1.partial_cmp(&a.1)
        .unwrap_or(Ordering::Equal)
        .then(a.0.cmp(&b.0))
}
