//! From the policy's text to the rows of the kernel's tables: `file` (what YAML looks like) -> `model` (what it means, valid by
//! construction) -> `compile` (rows). Pure: nothing here asks Docker, the kernel or a clock.

pub mod model;
pub mod rows;
