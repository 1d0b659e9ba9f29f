//! Work in equal pieces on a few threads, stopped by the first error.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::Result;

/// Calls `work` for `0..pieces` on up to `threads` threads, in no certain
/// order. After an error no further piece begins; of several errors the one of
/// the lowest piece is returned.
pub(crate) fn for_each(
    threads: usize,
    pieces: usize,
    work: impl Fn(usize) -> Result<()> + Sync,
) -> Result<()> {
    map(threads, pieces, work).map(drop)
}

/// As [`for_each`], with the results in order.
pub(crate) fn map<T: Send>(
    threads: usize,
    pieces: usize,
    work: impl Fn(usize) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let next = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    let done: Mutex<Vec<(usize, Result<T>)>> = Mutex::new(Vec::with_capacity(pieces));
    let take_turns = || {
        while !stop.load(Ordering::Relaxed) {
            let piece = next.fetch_add(1, Ordering::Relaxed);
            if piece >= pieces {
                break;
            }
            let result = work(piece);
            if result.is_err() {
                stop.store(true, Ordering::Relaxed);
            }
            // A panic of another thread is passed on when the scope ends.
            let mut done = done.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            done.push((piece, result));
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.min(pieces) {
            scope.spawn(take_turns);
        }
        take_turns();
    });
    let mut done = done
        .into_inner()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    done.sort_by_key(|(piece, _)| *piece);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    #[test]
    fn results_come_in_order_and_the_first_error_wins() {
        for threads in [1, 2, 5] {
            let squares = map(threads, 100, |i| Ok(i * i)).unwrap();
            assert!(
                squares
                    .iter()
                    .enumerate()
                    .all(|(i, square)| *square == i * i)
            );
            let began = AtomicUsize::new(0);
            let error = for_each(threads, 1000, |i| {
                began.fetch_add(1, Ordering::Relaxed);
                match i {
                    3.. => Err(Error::malformed("x", i.to_string())),
                    _ => Ok(()),
                }
            });
            assert_eq!(error.unwrap_err().to_string(), "x: 3");
            assert!(began.load(Ordering::Relaxed) < 1000);
            assert!(map(threads, 0, Ok).unwrap().is_empty());
        }
    }
}
