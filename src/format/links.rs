//! Where paths lead once symbolic links are followed.
//!
//! Systems do that themselves, but not the host of WASI in Node: it looks for a relative target from where the path says
//! that the link is, and not from where it is. A folder of such links, as the Hugging Face cache has them, could not be
//! read by way of a link to that folder.

use std::borrow::Cow;
use std::io;
use std::path::{Path, PathBuf};

/// A path to the same place that may be opened.
#[cfg(not(target_os = "wasi"))]
pub fn followed(path: &Path) -> Cow<'_, Path> {
    Cow::Borrowed(path)
}

/// A path to the same place that may be opened: one without links. Where there is nothing, opening says so.
#[cfg(target_os = "wasi")]
pub fn followed(path: &Path) -> Cow<'_, Path> {
    canonical(path).map_or(Cow::Borrowed(path), Cow::Owned)
}

/// The one absolute path without links to what is at `path`.
///
/// # Errors
/// What the file system says, as where there is nothing.
#[cfg(not(target_os = "wasi"))]
pub fn canonical(path: &Path) -> io::Result<PathBuf> {
    path.canonicalize()
}

/// The one absolute path without links to what is at `path`.
///
/// # Errors
/// What the file system says, as where there is nothing.
#[cfg(target_os = "wasi")]
pub fn canonical(path: &Path) -> io::Result<PathBuf> {
    walk(path)
}

/// Goes along a path and follows each link from where it is, as systems do; std has nothing for WASI.
#[cfg(any(target_os = "wasi", all(test, unix)))]
fn walk(path: &Path) -> io::Result<PathBuf> {
    use std::path::Component;

    /// As many as Linux follows; more are a circle.
    const MOST_LINKS: usize = 40;

    let mut real = std::env::current_dir()?;
    let mut links = 0;
    // What is still to go, the next part last.
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
                // What is no link is not read as one; that it is there at all is asked at the end.
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
