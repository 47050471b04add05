//! The `shadowset` program.

fn main() -> std::process::ExitCode {
    shadowset::cli::main()
}
