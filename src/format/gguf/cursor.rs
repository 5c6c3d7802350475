//! Reads header bytes front to back, and distinguishes a truncated file from a header that is not fully read yet.

use crate::error::{Error, ErrorCode};

/// Why reading stopped.
#[derive(Debug)]
pub(super) enum Stop {
    /// The header continues after the bytes read so far.
    NeedsMore,
    /// The header is invalid.
    Refused(Error),
}

/// A position in the first bytes of a file.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    file_len: u64,
}

impl<'a> Cursor<'a> {
    /// Starts at the front of `bytes`, the first bytes of a file of `file_len` bytes.
    pub(super) fn new(bytes: &'a [u8], file_len: u64) -> Self {
        Self { bytes, at: 0, file_len }
    }

    /// Bytes consumed.
    pub(super) fn position(&self) -> u64 {
        self.at as u64
    }

    /// Refuses `count` items of at least `size` bytes if the rest of the file is too short. Called before any
    /// allocation.
    pub(super) fn check_room(&self, what: &str, count: u64, size: u64) -> Result<(), Stop> {
        let left = self.file_len - self.position();
        if count.checked_mul(size).is_none_or(|bytes| bytes > left) {
            return Err(Stop::Refused(Error::invalid_checkpoint(format!(
                "expected {count} {what} at offset {} but the file ends {left} bytes later; is it truncated?",
                self.at
            ))));
        }
        Ok(())
    }

    fn take(&mut self, len: u64) -> Result<&'a [u8], Stop> {
        self.check_room("bytes", len, 1)?;
        // The range lies inside the file. If its end does not fit in `usize`, it is not among the bytes read.
        let end = usize::try_from(len).ok().and_then(|len| self.at.checked_add(len));
        let taken = end.and_then(|end| self.bytes.get(self.at..end)).ok_or(Stop::NeedsMore)?;
        self.at += taken.len();
        Ok(taken)
    }

    pub(super) fn bytes<const N: usize>(&mut self) -> Result<[u8; N], Stop> {
        let taken = self.take(N as u64)?;
        Ok(*taken.first_chunk().expect("as many as were asked for"))
    }

    pub(super) fn u32(&mut self) -> Result<u32, Stop> {
        self.bytes().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Stop> {
        self.bytes().map(u64::from_le_bytes)
    }

    pub(super) fn string(&mut self) -> Result<String, Stop> {
        let len = self.u64()?;
        let at = self.at;
        let text = std::str::from_utf8(self.take(len)?).map_err(|error| {
            Stop::Refused(Error::invalid_checkpoint(format!(
                "the text at offset {at} is not UTF-8: wrong byte at offset {}",
                at + error.valid_up_to()
            )))
        })?;
        Ok(text.to_owned())
    }

    /// Reads `count` numbers of `N` bytes each.
    pub(super) fn numbers<T, const N: usize>(
        &mut self,
        count: u64,
        decode: fn([u8; N]) -> T,
    ) -> Result<Vec<T>, Stop> {
        self.check_room("array elements", count, N as u64)?;
        let bytes = self.take(count * N as u64)?;
        let mut numbers = reserved(bytes.len() / N)?;
        numbers.extend(bytes.as_chunks::<N>().0.iter().map(|bytes| decode(*bytes)));
        Ok(numbers)
    }

    /// Reads `count` items of at least `size` bytes each.
    pub(super) fn list<T>(
        &mut self,
        count: u64,
        size: u64,
        mut read: impl FnMut(&mut Self) -> Result<T, Stop>,
    ) -> Result<Vec<T>, Stop> {
        self.check_room("array elements", count, size)?;
        if count * size > self.bytes.len() as u64 - self.position() {
            return Err(Stop::NeedsMore);
        }
        let mut list = reserved(count as usize)?;
        for _ in 0..count {
            list.push(read(self)?);
        }
        Ok(list)
    }
}

fn reserved<T>(len: usize) -> Result<Vec<T>, Stop> {
    let mut list = Vec::new();
    list.try_reserve_exact(len).map_err(|_| {
        Stop::Refused(Error::new(
            ErrorCode::OutOfMemory,
            format!("{len} array elements do not fit in memory"),
        ))
    })?;
    Ok(list)
}
