//! The `shadowset` program.

#[cfg(not(shuttle))]
fn main() -> std::process::ExitCode {
    shadowset::cli::main()
}

/// A build for schedules has no command line.
#[cfg(shuttle)]
fn main() {}
