//! Tasks run once each, whatever the team does, and a panic reaches the caller.

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;
    use std::time::Duration;

    use glm_kernels::{Parallel, Team};

    /// Calls of each size; Miri is a thousand times slower.
    const CALLS: usize = if cfg!(miri) { 3 } else { 400 };

    fn counts(team: &Team, tasks: usize) -> Vec<usize> {
        let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
        team.run(tasks, &|task| {
            counts[task].fetch_add(1, Ordering::Relaxed);
        });
        // A relaxed read would miss a task that the call did not wait for.
        counts.into_iter().map(AtomicUsize::into_inner).collect()
    }

    #[test]
    fn every_task_runs_once_in_every_call() {
        for size in [1, 2, 3, 5] {
            // The last one has members that sleep whenever they can.
            let team = match size {
                5 => Team::with_patience(size, Duration::ZERO).unwrap(),
                _ => Team::new(size).unwrap(),
            };
            assert_eq!(team.threads(), size);
            for _ in 0..CALLS {
                for tasks in [0, 1, 2, 7, 40] {
                    assert_eq!(counts(&team, tasks), vec![1; tasks], "{size} {tasks}");
                }
            }
        }
    }

    #[test]
    fn members_that_sleep_are_woken_and_share_the_work() {
        let team = Team::new(3).unwrap();
        for _ in 0..3 {
            thread::sleep(Duration::from_millis(5));
            // Tasks that wait for each other end only when every member is there.
            let there = AtomicUsize::new(0);
            team.run(3, &|_| {
                there.fetch_add(1, Ordering::SeqCst);
                while there.load(Ordering::SeqCst) < 3 {
                    thread::yield_now();
                }
            });
        }
    }

    #[test]
    fn what_a_task_writes_is_seen_after_the_call() {
        let team = Team::new(2).unwrap();
        for round in 0..CALLS {
            let parts: Vec<std::sync::Mutex<Vec<usize>>> =
                (0..8).map(|_| std::sync::Mutex::default()).collect();
            team.run(8, &|task| {
                parts[task].lock().unwrap().push(task * round);
            });
            for (task, part) in parts.iter().enumerate() {
                assert_eq!(*part.lock().unwrap(), [task * round]);
            }
        }
    }

    #[test]
    fn a_panic_of_any_task_reaches_the_caller_and_the_team_goes_on() {
        let team = Team::new(3).unwrap();
        for bad in 0..6 {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                team.run(6, &|task| assert!(task != bad, "task {task}"));
            }));
            let payload = caught.expect_err("the panic comes through");
            let message = payload.downcast_ref::<String>().map(String::as_str);
            assert_eq!(message, Some(format!("task {bad}").as_str()));
            assert_eq!(counts(&team, 9), [1; 9]);
        }
    }

    #[test]
    fn calls_inside_of_tasks_and_of_other_threads_run_too() {
        let team = Team::new(2).unwrap();
        let sum = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    team.run(4, &|_| {
                        team.run(5, &|_| {
                            sum.fetch_add(1, Ordering::Relaxed);
                        });
                    });
                });
            }
        });
        assert_eq!(sum.into_inner(), 40);
    }
}
