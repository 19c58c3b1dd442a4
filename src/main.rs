//! The `onlay` program.
fn main() {}
