//! The `lowbit` command.

fn main() -> std::process::ExitCode {
    quieten_drivers();
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    give_back_what_is_freed();
    #[cfg(target_os = "wasi")]
    wasi::prepare();
    lowbit::command_line(std::env::args_os())
}

/// When adapters are listed, Mesa's drivers look for a window system. Without one, as in containers, they print
/// an error about `XDG_RUNTIME_DIR`. A folder without a socket avoids the message.
fn quieten_drivers() {
    const FOLDER: &str = "XDG_RUNTIME_DIR";
    if cfg!(target_os = "linux") && std::env::var_os(FOLDER).is_none() {
        // SAFETY: the process has just started, so no other thread can be reading the environment.
        unsafe { std::env::set_var(FOLDER, std::env::temp_dir()) };
    }
}

/// Makes glibc return freed large allocations to the system. By default it raises its threshold when such an allocation
/// is freed, and then keeps allocations of up to 32 MiB. A run then exceeds its memory plan, by 40 % in AWQ's search,
/// which allocates and frees many matrices.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn give_back_what_is_freed() {
    use std::ffi::c_int;

    /// Allocations of at least this size are mapped directly. Row buffers of tasks and packed operands of
    /// matrix products are smaller.
    const LARGE: c_int = (1 << 20) + (96 << 10);
    /// Unused memory kept at the end of a heap for the next product. Otherwise glibc returns it after each product,
    /// and getting it again takes half as long as the products.
    const UNUSED: c_int = 4 << 20;
    /// From `malloc.h`.
    const M_TRIM_THRESHOLD: c_int = -1;
    const M_MMAP_THRESHOLD: c_int = -3;
    const M_ARENA_MAX: c_int = -8;
    unsafe extern "C" {
        fn mallopt(parameter: c_int, value: c_int) -> c_int;
    }
    // One heap for all threads, because each heap would keep as much. Threads seldom allocate.
    for (parameter, value) in [(M_MMAP_THRESHOLD, LARGE), (M_TRIM_THRESHOLD, UNUSED), (M_ARENA_MAX, 1)] {
        // SAFETY: declared as in glibc. It does not affect existing allocations, and no other thread runs yet. If
        // it fails, nothing changes.
        unsafe { mallopt(parameter, value) };
    }
}

/// The command as a WebAssembly module for the npm package.
#[cfg(target_os = "wasi")]
mod wasi {
    use std::{env, panic, process};

    /// The exit code of a panic, as in any Rust program.
    const PANICKED: i32 = 101;

    pub fn prepare() {
        exit_on_panic();
        enter_folder();
    }

    /// A panic would end in a trap without a message for the caller.
    fn exit_on_panic() {
        let report = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            report(panic);
            process::exit(PANICKED);
        }));
    }

    /// A module starts in the root. `PWD` has the user's folder.
    fn enter_folder() {
        let Some(folder) = env::var_os("PWD") else { return };
        // Continuing would read and write the wrong files.
        if let Err(error) = env::set_current_dir(&folder) {
            eprintln!("error: {}: {error}", folder.display());
            process::exit(2);
        }
    }
}
