//! Worlds as lists, and the snapshots that they make.
