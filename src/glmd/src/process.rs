//! What the system says about this process.

/// Memory of the process in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Anonymous pages and what of them is swapped: what no file can give back.
    pub anonymous: u64,
    /// All resident pages.
    pub resident: u64,
}

/// Memory of this process; zeros where `/proc` cannot be read.
#[must_use]
pub fn memory() -> Memory {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    parse(&status)
}

/// From the text of `/proc/<pid>/status`; see proc_pid_status(5).
fn parse(status: &str) -> Memory {
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
            // The unit is always kB, which means KiB.
            .map_or(0, |kib| kib.saturating_mul(1024))
    };
    Memory {
        anonymous: field("RssAnon").saturating_add(field("VmSwap")),
        resident: field("VmRSS"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_of_the_kernel_is_understood() {
        let text = "Name:\tglmd\nVmRSS:\t   20480 kB\nRssAnon:\t    8192 kB\nVmSwap:\t      4 kB\n";
        let memory = parse(text);
        assert_eq!(memory.resident, 20 << 20);
        assert_eq!(memory.anonymous, (8192 + 4) << 10);
        assert_eq!(parse("nonsense\nRssAnon: x"), Memory::default());
        assert!(super::memory().resident > 0);
    }
}
