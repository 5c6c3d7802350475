//! Zeroed memory on cache-line boundaries, and the buffers made of it. Floor 4.

use crate::backend::Element;
use crate::error::{Error, ErrorCode, Result};
use bytemuck::{Pod, Zeroable};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

/// One cache line: what a `Vec` of it aligns to.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// A fixed number of zeroed `T` that start at a cache line. `T` is a plain number whose size divides 64.
pub(super) struct Aligned<T> {
    lines: Vec<Line>,
    len: usize,
    element: PhantomData<T>,
}

impl<T: Pod> Aligned<T> {
    /// `len` zeros.
    ///
    /// # Errors
    /// `out_of_memory` when they cannot be had or not even be addressed.
    pub(super) fn zeroed(len: usize) -> Result<Self> {
        assert!(size_of::<Line>().is_multiple_of(size_of::<T>()), "elements must not straddle cache lines");
        let refused = || {
            Error::new(
                ErrorCode::OutOfMemory,
                format!("cannot allocate a buffer of {len} elements of {} bytes", size_of::<T>()),
            )
        };
        let bytes = len.checked_mul(size_of::<T>()).ok_or_else(refused)?;
        let count = bytes.div_ceil(size_of::<Line>());
        let mut lines = Vec::new();
        lines.try_reserve_exact(count).map_err(|_| refused())?;
        lines.resize(count, Line::zeroed());
        Ok(Self { lines, len, element: PhantomData })
    }
}

impl<T: Pod> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }
}

impl<T: Pod> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}

/// A buffer of the CPU backend: activations, a cache, or token ids.
pub struct CpuBuffer(Content);

enum Content {
    F32(Aligned<f32>),
    U32(Aligned<u32>),
}

impl CpuBuffer {
    pub(super) fn zeroed(element: Element, len: usize) -> Result<Self> {
        Ok(Self(match element {
            Element::F32 => Content::F32(Aligned::zeroed(len)?),
            Element::U32 => Content::U32(Aligned::zeroed(len)?),
        }))
    }

    /// How many elements it holds.
    pub fn len(&self) -> usize {
        match &self.0 {
            Content::F32(values) => values.len(),
            Content::U32(values) => values.len(),
        }
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first `len` activations; `what` names the operand in the error.
    pub(super) fn f32(&self, what: &str, len: usize) -> Result<&[f32]> {
        match &self.0 {
            Content::F32(values) => values.get(..len).ok_or_else(|| too_short(what, len, values.len())),
            Content::U32(_) => Err(wrong_element(what, "F32", "U32")),
        }
    }

    /// As [`CpuBuffer::f32`], to be written.
    pub(super) fn f32_mut(&mut self, what: &str, len: usize) -> Result<&mut [f32]> {
        match &mut self.0 {
            Content::F32(values) => {
                let found = values.len();
                values.get_mut(..len).ok_or_else(|| too_short(what, len, found))
            }
            Content::U32(_) => Err(wrong_element(what, "F32", "U32")),
        }
    }

    /// The first `len` token ids.
    pub(super) fn u32(&self, what: &str, len: usize) -> Result<&[u32]> {
        match &self.0 {
            Content::U32(values) => values.get(..len).ok_or_else(|| too_short(what, len, values.len())),
            Content::F32(_) => Err(wrong_element(what, "U32", "F32")),
        }
    }

    /// The bits of the first `len` elements, whatever they are.
    pub(super) fn bits(&self, what: &str, len: usize) -> Result<&[u32]> {
        let words = match &self.0 {
            Content::F32(values) => bytemuck::cast_slice(values),
            Content::U32(values) => values,
        };
        words.get(..len).ok_or_else(|| too_short(what, len, words.len()))
    }

    /// As [`CpuBuffer::u32`], to be written.
    pub(super) fn u32_mut(&mut self, what: &str, len: usize) -> Result<&mut [u32]> {
        match &mut self.0 {
            Content::U32(values) => {
                let found = values.len();
                values.get_mut(..len).ok_or_else(|| too_short(what, len, found))
            }
            Content::F32(_) => Err(wrong_element(what, "U32", "F32")),
        }
    }
}

fn too_short(what: &str, expected: usize, found: usize) -> Error {
    Error::invalid_argument(format!("{what} needs {expected} elements but the buffer holds {found}"))
}

fn wrong_element(what: &str, expected: &str, found: &str) -> Error {
    Error::invalid_argument(format!("{what} must be a buffer of {expected} but is one of {found}"))
}
