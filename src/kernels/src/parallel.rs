//! Who runs the tasks of a kernel.

/// Runs tasks, perhaps at the same time: a [`Team`](crate::Team), or [`Serial`].
pub trait Parallel: Sync {
    /// How many tasks run at once at most; a hint for cutting work.
    fn threads(&self) -> usize;

    /// Runs `task(0)` to `task(tasks - 1)`, each once, in any order, and
    /// returns when all have ended.
    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync));
}

/// Runs tasks one after the other on the calling thread.
#[derive(Clone, Copy, Debug, Default)]
pub struct Serial;

impl Parallel for Serial {
    fn threads(&self) -> usize {
        1
    }

    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        (0..tasks).for_each(task);
    }
}
