//! The `lowbit` command. Floor 9.

fn main() -> std::process::ExitCode {
    quieten_drivers();
    lowbit::cli::main(std::env::args_os())
}

/// Asked for their adapters, Mesa's drivers look for a window system too, and where there is none (containers) they write
/// an error about `XDG_RUNTIME_DIR` to standard error. A folder without a socket in it tells them the same in silence.
fn quieten_drivers() {
    const FOLDER: &str = "XDG_RUNTIME_DIR";
    if cfg!(target_os = "linux") && std::env::var_os(FOLDER).is_none() {
        // SAFETY: this is the first thing that the process does, so no other thread can be reading the environment.
        unsafe { std::env::set_var(FOLDER, std::env::temp_dir()) };
    }
}
