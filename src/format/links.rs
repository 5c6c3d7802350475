//! Resolves symbolic links in paths.
//!
//! Operating systems do this themselves. The WASI host in Node does not do it correctly: it resolves a relative link
//! target against the requested path instead of the link's real location. A folder of links, such as the Hugging Face
//! cache, could therefore not be read through a link to that folder.

use std::borrow::Cow;
use std::io;
use std::path::{Path, PathBuf};

/// An equivalent path that can be opened.
#[cfg(not(target_os = "wasi"))]
pub fn followed(path: &Path) -> Cow<'_, Path> {
    Cow::Borrowed(path)
}

/// An equivalent path without links that can be opened. If nothing exists there, opening reports it.
#[cfg(target_os = "wasi")]
pub fn followed(path: &Path) -> Cow<'_, Path> {
    canonical(path).map_or(Cow::Borrowed(path), Cow::Owned)
}

/// The absolute path without links of `path`.
///
/// # Errors
/// Errors of the file system, for instance if nothing exists at `path`.
#[cfg(not(target_os = "wasi"))]
pub fn canonical(path: &Path) -> io::Result<PathBuf> {
    path.canonicalize()
}

/// The absolute path without links of `path`.
///
/// # Errors
/// Errors of the file system, for instance if nothing exists at `path`.
#[cfg(target_os = "wasi")]
pub fn canonical(path: &Path) -> io::Result<PathBuf> {
    walk(path)
}

/// Walks along a path and resolves each link against the link's own folder, as systems do; std does not do this on
/// WASI.
#[cfg(any(target_os = "wasi", all(test, unix)))]
fn walk(path: &Path) -> io::Result<PathBuf> {
    use std::path::Component;

    /// Linux's limit; more links are a cycle.
    const MOST_LINKS: usize = 40;

    let mut real = std::env::current_dir()?;
    let mut links = 0;
    // The remaining path parts, the next one last.
    let mut ahead = vec![path.to_owned()];
    while let Some(path) = ahead.pop() {
        let mut parts = path.components();
        let Some(part) = parts.next() else { continue };
        ahead.push(parts.as_path().to_owned());
        match part {
            Component::RootDir => real = PathBuf::from("/"),
            Component::ParentDir => {
                if !std::fs::symlink_metadata(&real)?.is_dir() {
                    return Err(io::ErrorKind::NotADirectory.into());
                }
                real.pop();
            }
            Component::Normal(name) => {
                real.push(name);
                // Fails for entries that are not links. Existence is checked at the end.
                if let Ok(target) = std::fs::read_link(&real) {
                    links += 1;
                    if links > MOST_LINKS {
                        return Err(io::Error::other("too many levels of symbolic links"));
                    }
                    real.pop();
                    ahead.push(target);
                }
            }
            Component::CurDir | Component::Prefix(_) => {}
        }
    }
    std::fs::symlink_metadata(&real)?;
    Ok(real)
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_walk_ends_where_the_system_ends() {
        let folder = tempfile::tempdir().unwrap();
        let at = |path: &str| folder.path().join(path);
        fs::create_dir_all(at("hub/blobs")).unwrap();
        fs::create_dir_all(at("hub/snapshots/main")).unwrap();
        fs::write(at("hub/blobs/1"), "").unwrap();
        for (target, link) in [
            ("../../blobs/1", "hub/snapshots/main/file"),
            ("hub/snapshots/main", "model"),
            ("./model", "again"),
            ("file", "hub/snapshots/main/twice"),
            ("circle", "circle"),
            ("nowhere", "dangling"),
            ("../..", "hub/snapshots/up"),
        ] {
            symlink(target, at(link)).unwrap();
        }
        symlink(at("hub"), at("absolute")).unwrap();
        for path in [
            ".",
            "hub/blobs/1",
            "hub/snapshots/main/file",
            "model/file",
            "again/twice",
            "again/../main/./file",
            "absolute/blobs//1",
            "absolute/snapshots/up/model/",
            "model/../../blobs/1",
            "circle",
            "dangling",
            "absent",
            "absent/../hub",
            "hub/blobs/1/x",
            "hub/blobs/1/..",
        ] {
            let (walked, expected) = (walk(&at(path)), at(path).canonicalize());
            assert_eq!(walked.is_ok(), expected.is_ok(), "{path}: {walked:?}");
            if let (Ok(walked), Ok(expected)) = (walked, expected) {
                assert_eq!(walked, expected, "{path}");
            }
        }
        assert_eq!(
            walk(Path::new("src/../Cargo.toml")).unwrap(),
            Path::new("Cargo.toml").canonicalize().unwrap()
        );
        assert_eq!(walk(Path::new("/..")).unwrap(), Path::new("/"));
    }
}
