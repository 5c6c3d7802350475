//! The `lowbit` command.

fn main() -> std::process::ExitCode {
    quieten_drivers();
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    give_back_what_is_freed();
    #[cfg(target_os = "wasi")]
    wasi::prepare();
    lowbit::command_line(std::env::args_os())
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

/// Lets glibc give large pieces of memory back to the system as soon as they are freed. By itself it does so only until the
/// first of a size was freed, and then keeps the next ones, up to 32 MiB each, for later: a run takes more than it was planned
/// to, by 40 % where matrices come and go, as in AWQ's search.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn give_back_what_is_freed() {
    use std::ffi::c_int;

    /// From this size on memory comes from the system and goes back to it: what tasks hold of a few rows is smaller, and so is
    /// what a matrix product packs its operands into.
    const LARGE: c_int = (1 << 20) + (96 << 10);
    /// So much may lie unused at the end of a heap, for the next product. By itself glibc would give it back after each one,
    /// and getting it again took half as long as the products.
    const UNUSED: c_int = 4 << 20;
    /// Of `malloc.h`.
    const M_TRIM_THRESHOLD: c_int = -1;
    const M_MMAP_THRESHOLD: c_int = -3;
    const M_ARENA_MAX: c_int = -8;
    unsafe extern "C" {
        fn mallopt(parameter: c_int, value: c_int) -> c_int;
    }
    // One heap for all threads: each of its own would keep as much. They seldom ask for memory.
    for (parameter, value) in [(M_MMAP_THRESHOLD, LARGE), (M_TRIM_THRESHOLD, UNUSED), (M_ARENA_MAX, 1)] {
        // SAFETY: as glibc declares it. It changes nothing of what is allocated already, and no other thread runs yet. Where
        // it refuses, nothing changes.
        unsafe { mallopt(parameter, value) };
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
