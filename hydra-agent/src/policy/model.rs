//! Placeholder.
/// Placeholder.
#[derive(Debug)]
pub struct Model;
