//! Programs from seeds, their next versions, the ways to build them, and what is asked of a pair.

mod assembly;
mod classes;
mod cpp;
pub(crate) mod drive;
mod edits;
mod generate;
mod program;
mod render;
pub(crate) mod shrink;
mod tables;
mod ways;
