//! References recovered from plain images, held against what the linker knew.
mod judge;
mod map;
mod matrix;
mod objects;
mod truth;

fn main() -> std::process::ExitCode {
    matrix::run()
}
