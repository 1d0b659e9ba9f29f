//! Which instruction set is found.

#[cfg(test)]
mod tests {
    use glm_kernels::{Isa, Kernels};

    /// Names the set that the machine is known to have, where somebody knows: an emulator's core, a board.
    const EXPECTED: &str = "GLM_EXPECTED_ISA";

    #[test]
    fn the_best_set_of_the_machine_is_found() {
        let best = Isa::detect();
        assert!(Isa::available().iter().all(|isa| *isa <= best));
        assert!(Kernels::with_isa(best).is_ok_and(|kernels| kernels.isa() == best));
        match std::env::var(EXPECTED) {
            Ok(expected) => assert_eq!(best.name(), expected),
            Err(_) => println!("{EXPECTED} is not set: {best} is taken on trust"),
        }
    }
}
