//! Whether the process may do what the agent does, looked at before anything is tried: without rights the first thing to fail would
//! be something else every time.

use super::RunError;

/// Bits of `CapEff` in `/proc/self/status` (`linux/capability.h`). `CAP_BPF` is not asked for: kernels before 5.8 do not have it, and
/// the datapath says itself what it lacks.
const NEEDED: [(u32, &str); 2] = [(12, "CAP_NET_ADMIN"), (21, "CAP_SYS_ADMIN")];

/// Refuses a process without them.
pub(super) fn check() -> Result<(), RunError> {
    let status = std::fs::read_to_string("/proc/self/status").map_err(RunError::Begin)?;
    let lacking = lacking(&status);
    if lacking.is_empty() { Ok(()) } else { Err(RunError::Rights(lacking)) }
}

fn lacking(status: &str) -> Vec<&'static str> {
    let line = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
    let bits = line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    NEEDED.iter().filter(|(bit, _)| bits & (1 << bit) == 0).map(|(_, name)| *name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lacking_is_named() {
        assert_eq!(lacking("Name:\tx\nCapEff:\t000001ffffffffff\n"), [""; 0]);
        assert_eq!(lacking("CapEff:\t0000000000001000\n"), ["CAP_SYS_ADMIN"]);
        assert_eq!(lacking("CapEff:\t0000000000000000\n"), ["CAP_NET_ADMIN", "CAP_SYS_ADMIN"]);
    }
}
