//! The project's own benchmark: `cargo xtask bench` runs it. Every figure is a ratio of things that were measured in turns in the same
//! minute, or does not depend on time at all; where it was measured is published with it.
#![expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "frames and programs of some hundred bytes, and figures that are estimates"
)]

pub mod assembler;
pub mod bpf;
pub mod cpu;
pub mod docker;
pub mod environment;
pub mod guard;
pub mod header;
pub mod kept;
pub mod l0;
pub mod l1;
pub mod l2;
pub mod l3;
pub mod l4;
pub mod progress;
pub mod publish;
pub mod report;
pub mod scene;
pub mod stats;
pub mod svg;
