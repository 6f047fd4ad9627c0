//! The `hp` command.
fn main() {}
