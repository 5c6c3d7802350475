//! Notes that let a calibrated run continue after it was killed.
//!
//! After each block a note records the number of finished blocks, and the weight errors and calibration records of
//! their modules. Matrices and residual streams are already in scratch. A note begins with a line with the SHA-256 of
//! the rest. Two notes alternate, so that one is always complete. A note contains a key of everything that determines
//! the result: source, options, samples, version and device.

use crate::calibrate::modules::{CalibratedModules, ModuleNotes};
use crate::digest::sha256_hex;
use crate::error::{Error, Result};
use crate::format::json;
use crate::format::scratch::Scratch;
use serde::{Deserialize, Serialize};

/// The alternating notes.
const BLOBS: [&str; 2] = ["resume-0", "resume-1"];

/// The contents of a note.
#[derive(Serialize, Deserialize)]
struct Note {
    key: String,
    /// Finished blocks; `None` before the samples are embedded.
    blocks: Option<usize>,
    /// Results of the finished modules.
    modules: ModuleNotes,
}

/// Writes notes for one run.
pub(super) struct Journal<'a> {
    scratch: &'a dyn Scratch,
    key: String,
    next: usize,
}

impl<'a> Journal<'a> {
    /// Opens the notes of the run with `key`, and returns its finished work, if any.
    ///
    /// # Errors
    /// `invalid_argument` if scratch has notes of another run.
    pub(super) async fn open(
        scratch: &'a dyn Scratch,
        key: String,
    ) -> Result<(Self, Option<(usize, CalibratedModules<'a>)>)> {
        let mut journal = Self { scratch, key, next: 0 };
        let latest = latest(scratch).await?;
        let Some((index, note)) = latest else {
            journal.write(None, &CalibratedModules::new(scratch)).await?;
            return Ok((journal, None));
        };
        if note.key != journal.key {
            return Err(Error::invalid_argument(
                "the saved state is of another run: source, options, calibration texts, version or device differ; \
                 choose another place for this run, or delete that state",
            ));
        }
        journal.next = 1 - index;
        let Some(blocks) = note.blocks else { return Ok((journal, None)) };
        Ok((journal, Some((blocks, CalibratedModules::restore(scratch, note.modules).await?))))
    }

    /// Records so many finished blocks.
    pub(super) async fn write(
        &mut self,
        blocks: Option<usize>,
        modules: &CalibratedModules<'_>,
    ) -> Result<()> {
        let note = Note { key: self.key.clone(), blocks, modules: modules.notes() };
        let json = serde_json::to_string_pretty(&note)
            .map_err(|error| Error::invalid_argument(error.to_string()))?;
        let blob = BLOBS[self.next];
        self.next = 1 - self.next;
        self.scratch.delete(blob).await?;
        self.scratch.write_at(blob, 0, format!("{}\n{json}", sha256_hex(json.as_bytes())).as_bytes()).await
    }
}

/// The finished blocks of any run in scratch; `None` if there is nothing to resume.
pub async fn blocks_done(scratch: &dyn Scratch) -> Result<Option<usize>> {
    Ok(latest(scratch).await?.and_then(|(_, note)| note.blocks))
}

/// Refuses scratch with foreign contents.
///
/// # Errors
/// `invalid_argument` for blobs without the notes of a run.
pub(in crate::pipeline) async fn refuse_other_files(scratch: &dyn Scratch) -> Result<()> {
    let names = scratch.names().await?;
    if names.is_empty() || names.iter().any(|name| BLOBS.contains(&name.as_str())) {
        return Ok(());
    }
    Err(Error::invalid_argument(
        "expected an empty place to resume from, or the state of a resumable run, but found other files",
    ))
}

/// Deletes the notes.
pub(super) async fn forget(scratch: &dyn Scratch) -> Result<()> {
    for blob in BLOBS {
        scratch.delete(blob).await?;
    }
    Ok(())
}

/// The complete note with most progress, and its index.
async fn latest(scratch: &dyn Scratch) -> Result<Option<(usize, Note)>> {
    let mut latest: Option<(usize, Note)> = None;
    for (index, blob) in BLOBS.into_iter().enumerate() {
        let Some(len) = scratch.len(blob).await? else { continue };
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        scratch.read_at(blob, 0, &mut bytes).await?;
        let Some(note) = parse(&bytes) else { continue };
        if latest.as_ref().is_none_or(|(_, other)| note.blocks > other.blocks) {
            latest = Some((index, note));
        }
    }
    Ok(latest)
}

/// Parses a note; `None` if it is incomplete.
fn parse(bytes: &[u8]) -> Option<Note> {
    let end = bytes.iter().position(|&byte| byte == b'\n')?;
    let (digest, text) = (&bytes[..end], &bytes[end + 1..]);
    if sha256_hex(text).as_bytes() != digest {
        return None;
    }
    json::parse(text).ok()
}

#[cfg(all(test, not(target_arch = "wasm32")))]
mod tests {
    use super::*;
    use crate::error::ErrorCode;
    use crate::format::scratch::MemoryScratch;
    use crate::task::block_on;

    fn done(scratch: &MemoryScratch) -> Option<usize> {
        block_on(blocks_done(scratch)).unwrap()
    }

    #[test]
    fn the_last_whole_note_counts() {
        let scratch = MemoryScratch::new();
        assert!(block_on(scratch.names()).unwrap().is_empty());
        let found = CalibratedModules::new(&scratch);
        let (mut journal, before) = block_on(Journal::open(&scratch, "a".into())).unwrap();
        assert!(before.is_none() && block_on(scratch.names()).unwrap().len() == 1);
        assert_eq!(done(&scratch), None);
        for blocks in 0..3 {
            block_on(journal.write(Some(blocks), &found)).unwrap();
            assert_eq!(done(&scratch), Some(blocks));
        }
        // Wherever a kill truncates the next note, the previous one counts.
        let (mut journal, before) = block_on(Journal::open(&scratch, "a".into())).unwrap();
        assert_eq!(before.map(|(blocks, _)| blocks), Some(2));
        let blob = BLOBS[journal.next];
        block_on(journal.write(Some(3), &found)).unwrap();
        let len = block_on(scratch.len(blob)).unwrap().unwrap() as usize;
        let mut whole = vec![0; len];
        block_on(scratch.read_at(blob, 0, &mut whole)).unwrap();
        for cut in [0, 1, 64, 65, len / 2, len - 1] {
            block_on(scratch.delete(blob)).unwrap();
            block_on(scratch.write_at(blob, 0, &whole[..cut])).unwrap();
            assert_eq!(done(&scratch), Some(2), "cut at {cut} of {len}");
        }
        let error = block_on(Journal::open(&scratch, "b".into())).err().unwrap();
        assert_eq!(error.code(), ErrorCode::InvalidArgument);
        block_on(forget(&scratch)).unwrap();
        assert!(block_on(scratch.names()).unwrap().is_empty());
    }
}
