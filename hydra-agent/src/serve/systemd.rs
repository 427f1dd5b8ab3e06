//! What the service manager hears. Without one, nothing happens.

use std::time::Duration;

use sd_notify::NotifyState;

/// The kernel enforces what it should.
pub fn ready(status: &str) {
    say(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// One line for `systemctl status`.
pub fn status(status: &str) {
    say(&[NotifyState::Status(status)]);
}

/// The agent ends; enforcement does not.
pub fn stopping() {
    say(&[NotifyState::Stopping, NotifyState::Status("stopping; what is enforced stays enforced")]);
}

/// The loop has looked at the kernel's tables and is alive.
pub fn alive() {
    say(&[NotifyState::Watchdog]);
}

/// How often [`alive`] must be said at least; `None` where nobody waits for it.
pub fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled()
}

fn say(states: &[NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(states) {
        tracing::debug!(error = %e, "the service manager could not be told");
    }
}
