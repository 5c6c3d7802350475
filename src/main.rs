//! The `lowbit` command. Floor 9.

fn main() -> std::process::ExitCode {
    quieten_drivers();
    #[cfg(target_os = "wasi")]
    wasi::prepare();
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

/// The command as a WebAssembly module, which the npm package starts: what a process has and a module has not.
#[cfg(target_os = "wasi")]
mod wasi {
    use std::{env, panic, process};

    /// The exit code of a panic, as of any program of Rust.
    const PANICKED: i32 = 101;

    pub fn prepare() {
        exit_on_panic();
        enter_folder();
    }

    /// A panic would end in a trap, of which whoever started the module could only say that it happened.
    fn exit_on_panic() {
        let report = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            report(panic);
            process::exit(PANICKED);
        }));
    }

    /// A module starts in the root. Where the user is, `PWD` says.
    fn enter_folder() {
        let Some(folder) = env::var_os("PWD") else { return };
        // Going on would read and write the wrong files.
        if let Err(error) = env::set_current_dir(&folder) {
            eprintln!("error: {}: {error}", folder.display());
            process::exit(2);
        }
    }
}
