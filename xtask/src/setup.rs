//! What the tasks need on a machine, and how it gets there.
//!
//! Rust components come by rustup, system packages by apt where this runs as root on Debian or Ubuntu; everywhere else
//! the message says what to install.

use crate::process::{program, run, succeeds};
use std::process::Command;

/// One thing that a task needs from the system.
pub struct Need {
    /// A command that succeeds where it is already there.
    probe: &'static [&'static str],
    /// The Debian and Ubuntu package that brings it.
    package: &'static str,
    /// Why the task needs it.
    reason: &'static str,
}

/// For `test`. No crate compiles C today: a linker and the C library's headers are all.
pub const FOR_TESTS: &[Need] = &[Need {
    probe: &["cc", "--version"],
    package: "build-essential",
    reason: "Rust links its programs with cc",
}];

/// What gives the tests of the GPU backend an adapter: Mesa's lavapipe, which computes on the processor. Without it
/// those tests are skipped, and say so.
const FOR_GPU_TESTS: &[Need] = &[
    Need {
        probe: &[
            "sh",
            "-c",
            "ls /usr/share/vulkan/icd.d/*.json /etc/vulkan/icd.d/*.json 2>/dev/null | grep -q .",
        ],
        package: "mesa-vulkan-drivers",
        reason: "the tests of the GPU backend run on its software adapter",
    },
    Need {
        probe: &["sh", "-c", "ldconfig -p | grep -q libvulkan.so.1"],
        package: "libvulkan1",
        reason: "GPU adapters are reached through the Vulkan loader",
    },
];

/// The browsers in which the package is tried. Without one its tests are skipped, and say so.
const FOR_BROWSER_TESTS: &[Need] = &[
    Need {
        probe: &[
            "sh",
            "-c",
            "command -v chromium || command -v chromium-browser || command -v google-chrome",
        ],
        package: "chromium",
        reason: "the package and the demo page are tried in it",
    },
    Need {
        probe: &["sh", "-c", "command -v firefox-esr || command -v firefox"],
        package: "firefox-esr",
        reason: "the package is tried in it",
    },
];

/// For `package`.
pub const FOR_PACKAGE: &[Need] = &[
    Need {
        probe: &["cc", "--version"],
        package: "build-essential",
        reason: "Rust links its programs with cc",
    },
    Need {
        probe: &["node", "--version"],
        package: "nodejs",
        reason: "the package is built by programs for Node",
    },
    Need { probe: &["npm", "--version"], package: "npm", reason: "those programs come as npm packages" },
];

/// For `interop`.
pub const FOR_INTEROP: &[Need] = &[
    Need {
        probe: &["python3", "-c", "import venv, ensurepip"],
        package: "python3-venv",
        reason: "transformers is installed into a virtual environment of its own",
    },
    Need { probe: &["npm", "--version"], package: "npm", reason: "llama.cpp comes as a package for Node" },
];

/// Makes sure that every need is met, installing packages where that is possible.
///
/// # Errors
/// What to install, when it is missing and cannot be installed from here.
pub fn system(needs: &[Need]) -> Result<(), String> {
    let missing: Vec<&Need> =
        needs.iter().filter(|need| !succeeds(need.probe[0], &need.probe[1..])).collect();
    if missing.is_empty() {
        return Ok(());
    }
    for need in &missing {
        println!("missing: {} ({}; `{}` does not run)", need.package, need.reason, need.probe.join(" "));
    }
    let packages: Vec<&str> = missing.iter().map(|need| need.package).collect();
    if !(is_root() && succeeds("apt-get", &["--version"])) {
        return Err(format!(
            "please install what is missing and start again; on Debian or Ubuntu: sudo apt-get install {}",
            packages.join(" ")
        ));
    }
    run(apt(&["update", "-qq"]))?;
    run(apt(&[&["install", "-y", "-qq", "--no-install-recommends"], packages.as_slice()].concat()))
}

/// Installs a software GPU adapter on Debian and Ubuntu, where that is possible. Tests can do without.
pub fn gpu() {
    if cfg!(target_os = "linux")
        && let Err(message) = system(FOR_GPU_TESTS)
    {
        println!("note: tests of the GPU backend may be skipped: {message}");
    }
}

/// Installs browsers on Debian, where that is possible. Tests can do without.
pub fn browsers() {
    if cfg!(target_os = "linux")
        && let Err(message) = system(FOR_BROWSER_TESTS)
    {
        println!("note: tests in browsers may be skipped: {message}");
    }
}

fn apt(args: &[&str]) -> Command {
    let mut command = program("apt-get", args);
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn is_root() -> bool {
    let id = program("id", &["-u"]).output();
    id.is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

/// Makes sure that rustfmt, clippy and the standard libraries for WebAssembly are there.
///
/// # Errors
/// rustup's failure, or what to install where there is no rustup.
pub fn rust() -> Result<(), String> {
    for (subcommand, component) in [("fmt", "rustfmt"), ("clippy", "clippy")] {
        if !succeeds("cargo", &[subcommand, "--version"]) {
            rustup(&["component", "add", component])?;
        }
    }
    for target in [WASM, WASI] {
        if !has_target(target) {
            rustup(&["target", "add", target])?;
        }
    }
    Ok(())
}

/// The target of the package's modules, which JavaScript calls.
pub const WASM: &str = "wasm32-unknown-unknown";

/// The target of the package's command, which has files, arguments and clocks by WASI's interface.
pub const WASI: &str = "wasm32-wasip1";

/// Asks the compiler and not rustup, so that a Rust from elsewhere serves as well.
fn has_target(target: &str) -> bool {
    let library = program("rustc", &["--print", "target-libdir", "--target", target]).output();
    library.is_ok_and(|output| {
        let path = String::from_utf8_lossy(&output.stdout);
        output.status.success() && std::path::Path::new(path.trim()).is_dir()
    })
}

fn rustup(args: &[&str]) -> Result<(), String> {
    run(program("rustup", args)).map_err(|message| format!("{message}; see https://rustup.rs"))
}
