//! Placeholder.
/// Placeholder.
#[derive(Debug)]
pub struct Diagnostics;
