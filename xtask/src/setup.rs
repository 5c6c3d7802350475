//! What the tasks need on a machine, and its installation.
//!
//! rustup installs Rust components. apt installs system packages when this runs as root on Debian or Ubuntu; elsewhere
//! a message says what to install.

use crate::process::{program, run, succeeds};
use std::process::Command;

/// One thing that a task needs from the system.
pub struct Need {
    /// A command that succeeds if it is installed.
    probe: &'static [&'static str],
    /// Its Debian and Ubuntu package.
    package: &'static str,
    /// Why the task needs it.
    reason: &'static str,
}

/// Needs of `test`: only a linker and the C library's headers, because no crate compiles C.
pub const FOR_TESTS: &[Need] = &[Need {
    probe: &["cc", "--version"],
    package: "build-essential",
    reason: "Rust links its programs with cc",
}];

/// A software adapter for the GPU tests: Mesa's lavapipe. Without it those tests are skipped with a message.
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

/// Browsers for the package's tests. Without one its tests are skipped with a message.
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

/// Needs of `package`.
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

/// Needs of `interop`.
pub const FOR_INTEROP: &[Need] = &[
    Need {
        probe: &["python3", "-c", "import venv, ensurepip"],
        package: "python3-venv",
        reason: "transformers is installed into a virtual environment of its own",
    },
    Need { probe: &["npm", "--version"], package: "npm", reason: "llama.cpp comes as a package for Node" },
];

/// Meets every need, installing packages where possible.
///
/// # Errors
/// Names what to install when it is missing and cannot be installed from here.
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

/// Installs a software GPU adapter on Debian and Ubuntu if possible. It is optional.
pub fn gpu() {
    if cfg!(target_os = "linux")
        && let Err(message) = system(FOR_GPU_TESTS)
    {
        println!("note: tests of the GPU backend may be skipped: {message}");
    }
}

/// Installs browsers on Debian if possible. They are optional.
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

/// Installs rustfmt, clippy and the standard libraries for WebAssembly if they are missing.
///
/// # Errors
/// rustup failed, or what to install where there is no rustup.
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

/// The target of the package's modules.
pub const WASM: &str = "wasm32-unknown-unknown";

/// The target of the package's command: WASI provides files, arguments and clocks.
pub const WASI: &str = "wasm32-wasip1";

/// Asks the compiler instead of rustup, so that another installation of Rust works too.
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
