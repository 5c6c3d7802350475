//! Zeroed memory aligned to cache lines, and the buffers made of it.

use crate::backend::{Element, Elements};
use crate::error::{Error, ErrorCode, Result};
use bytemuck::{Pod, Zeroable};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

/// One cache line: aligns a `Vec` of it.
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
    /// `out_of_memory` if the allocation fails or its size overflows.
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

    /// The first `len` activations. The buffer has at least as many.
    pub(super) fn f32(&self, len: usize) -> &[f32] {
        match &self.0 {
            Content::F32(values) => &values[..len],
            Content::U32(_) => unreachable!("steps are checked before they run"),
        }
    }

    /// As [`CpuBuffer::f32`], mutable.
    pub(super) fn f32_mut(&mut self, len: usize) -> &mut [f32] {
        match &mut self.0 {
            Content::F32(values) => &mut values[..len],
            Content::U32(_) => unreachable!("steps are checked before they run"),
        }
    }

    /// The first `len` token ids. The buffer has at least as many.
    pub(super) fn u32(&self, len: usize) -> &[u32] {
        match &self.0 {
            Content::U32(values) => &values[..len],
            Content::F32(_) => unreachable!("steps are checked before they run"),
        }
    }

    /// As [`CpuBuffer::u32`], mutable.
    pub(super) fn u32_mut(&mut self, len: usize) -> &mut [u32] {
        match &mut self.0 {
            Content::U32(values) => &mut values[..len],
            Content::F32(_) => unreachable!("steps are checked before they run"),
        }
    }

    /// The bits of all elements, of either type.
    pub(super) fn bits(&self) -> &[u32] {
        match &self.0 {
            Content::F32(values) => bytemuck::cast_slice(values),
            Content::U32(values) => values,
        }
    }

    /// As [`CpuBuffer::bits`], mutable.
    pub(super) fn bits_mut(&mut self) -> &mut [u32] {
        match &mut self.0 {
            Content::F32(values) => bytemuck::cast_slice_mut(values),
            Content::U32(values) => values,
        }
    }
}

impl Elements for CpuBuffer {
    fn element(&self) -> Element {
        match &self.0 {
            Content::F32(_) => Element::F32,
            Content::U32(_) => Element::U32,
        }
    }

    fn len(&self) -> usize {
        self.bits().len()
    }
}
