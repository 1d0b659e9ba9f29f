//! Operands: floats of two widths, and an output that tasks fill together.

use std::marker::PhantomData;

use half::f16;

/// Numbers that lie in memory as f32 or f16.
#[derive(Clone, Copy, Debug)]
pub enum Floats<'a> {
    /// 32-bit floats.
    F32(&'a [f32]),
    /// 16-bit floats.
    F16(&'a [f16]),
}

impl Floats<'_> {
    /// How many.
    #[must_use]
    pub const fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::F16(values) => values.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A slice whose elements several tasks write, each its own.
pub(crate) struct Output<'a, T> {
    start: *mut T,
    len: usize,
    life: PhantomData<&'a mut [T]>,
}

// SAFETY: tasks get disjoint parts only, which `write` and `part` make their
// callers promise; sharing the handle itself reads two plain words.
unsafe impl<T: Send> Sync for Output<'_, T> {}

impl<'a, T> Output<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self {
            start: slice.as_mut_ptr(),
            len: slice.len(),
            life: PhantomData,
        }
    }

    /// Elements `from..from + count`.
    ///
    /// # Safety
    /// No two parts that live at the same time may overlap.
    ///
    /// # Panics
    /// When the part does not lie inside.
    #[allow(
        clippy::mut_from_ref,
        reason = "the caller promises that parts do not overlap"
    )]
    pub(crate) unsafe fn part(&self, from: usize, count: usize) -> &mut [T] {
        assert!(from <= self.len && count <= self.len - from);
        // SAFETY: inside the slice by the line above; nobody else holds these
        // elements by the promise of the caller.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(from), count) }
    }
}
