//! CPU time, as the scheduler counts it: to the nanosecond, not to the tick.

use std::io;
use std::time::Duration;

use anyhow::{Context, Result};

/// What this thread has taken until now.
pub fn of_thread() -> Result<Duration> {
    read(libc::CLOCK_THREAD_CPUTIME_ID).context("a thread has no clock")
}

/// What a process has taken until now, with its threads that have ended.
pub fn of_process(pid: u32) -> Result<Duration> {
    let mut clock = 0;
    // SAFETY: `clock` is a live number that the call writes.
    let failed = unsafe { libc::clock_getcpuclockid(pid.cast_signed(), &raw mut clock) };
    let clock = if failed == 0 { read(clock) } else { Err(io::Error::from_raw_os_error(failed)) };
    clock.with_context(|| format!("process {pid} has no clock"))
}

fn read(clock: libc::clockid_t) -> io::Result<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a live timespec that the call writes.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Duration::new(time.tv_sec.cast_unsigned(), time.tv_nsec as u32))
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;
    use std::thread;

    use super::*;

    #[test]
    fn only_work_takes_time() {
        let work = || {
            let (mut sum, begun) = (0u64, of_thread().unwrap());
            while of_thread().unwrap().saturating_sub(begun) < Duration::from_millis(20) {
                sum = black_box(sum + 1);
            }
        };
        let own = || of_process(std::process::id()).unwrap();
        let (before, thread) = (own(), of_thread().unwrap());
        thread::spawn(work).join().unwrap();
        assert!(own().saturating_sub(before) >= Duration::from_millis(20), "of a thread that has ended");
        assert!(
            of_thread().unwrap().saturating_sub(thread) < own().saturating_sub(before),
            "another's is not ours"
        );
        // More than the kernel ever gives (`PID_MAX_LIMIT`).
        assert!(of_process(1 << 23).is_err());
    }
}
