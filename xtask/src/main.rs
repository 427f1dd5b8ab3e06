//! The project's own commands. Run as `cargo xtask VERB`.
fn main() {}
