//! The `lowbit` command. Floor 9.

fn main() -> std::process::ExitCode {
    lowbit::cli::main(std::env::args_os())
}
