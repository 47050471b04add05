//! Helper of mount(8).
fn main() {}
