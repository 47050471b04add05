//! The example of the library does what it says.

#[path = "../../examples/library.rs"]
mod example;

#[test]
fn the_example_copies_what_was_written_and_no_more() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let told = example::story(dir.path()).expect("it goes well");
    assert!(
        told.contains("minicopy") && told.contains("65024 bytes"),
        "{told}"
    );
}
