//! The flow table under pressure, in the kernel's own programs.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that can't go on ends here")]
#![allow(clippy::print_stdout, reason = "what was measured, for whoever reads the log")]

mod cleaning;
mod near;
mod places;
mod pressure;
mod support;
