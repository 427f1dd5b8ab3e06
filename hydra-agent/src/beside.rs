//! Two pieces of work at once, for what somebody waits for.

use std::panic::resume_unwind;
use std::thread;

/// What both give: `beside` on a thread of this name, `here` on this one; one after the other where no thread is to be had.
pub(crate) fn both<A: Send, B>(
    name: &str,
    beside: impl Fn() -> A + Sync,
    here: impl FnOnce() -> B,
) -> (A, B) {
    thread::scope(|scope| {
        let other = thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, &beside);
        let mine = here();
        let theirs = match other {
            Ok(other) => other.join().unwrap_or_else(|panic| resume_unwind(panic)),
            Err(_) => beside(),
        };
        (theirs, mine)
    })
}
