//! Splits work over threads without changing a result.
//!
//! Work is split over rows, tokens or heads, never inside a sum, so any number of threads gives the same bits.
//! Single-threaded on wasm32.

use std::marker::PhantomData;

/// Minimum multiply-adds that justify waking another thread: a wake-up takes some ten microseconds.
#[cfg(not(target_arch = "wasm32"))]
const WORTH_A_WAKE_UP: usize = 1 << 17;

/// The threads of one backend.
pub(super) struct Workers {
    /// The backend's own pool. `None` uses the pool of the process, which the caller may belong to.
    #[cfg(not(target_arch = "wasm32"))]
    pool: Option<rayon::ThreadPool>,
    threads: usize,
}

impl Workers {
    /// `threads` threads, or as many as the machine offers. If threads cannot be started there is one: the caller's.
    #[cfg(not(target_arch = "wasm32"))]
    pub(super) fn new(threads: Option<usize>) -> Self {
        let Some(wanted) = threads else {
            return Self { pool: None, threads: crate::parallel::lanes() };
        };
        let pool =
            (wanted > 1).then(|| rayon::ThreadPoolBuilder::new().num_threads(wanted).build().ok()).flatten();
        Self { threads: if pool.is_some() { wanted } else { 1 }, pool }
    }

    /// One thread, whatever is asked for.
    #[cfg(target_arch = "wasm32")]
    pub(super) fn new(_threads: Option<usize>) -> Self {
        Self { threads: 1 }
    }

    pub(super) fn threads(&self) -> usize {
        self.threads
    }

    /// Runs `task(0)`, ..., `task(count - 1)` in any order. `work` is roughly their total number of multiply-adds.
    pub(super) fn run(&self, count: usize, work: usize, task: impl Fn(usize) + Sync + Send) {
        #[cfg(not(target_arch = "wasm32"))]
        if count > 1 && self.pays(work) {
            use rayon::prelude::*;
            self.install(|| (0..count).into_par_iter().with_max_len(1).for_each(task));
            return;
        }
        let _ = work;
        (0..count).for_each(task);
    }

    /// Runs `task(i, chunk i)` for the chunks of `data`, `chunk` elements each.
    pub(super) fn run_chunks<T: Send>(
        &self,
        data: &mut [T],
        chunk: usize,
        work: usize,
        task: impl Fn(usize, &mut [T]) + Sync + Send,
    ) {
        #[cfg(not(target_arch = "wasm32"))]
        if data.len() > chunk && self.pays(work) {
            use rayon::prelude::*;
            self.install(|| data.par_chunks_mut(chunk).enumerate().for_each(|(i, part)| task(i, part)));
            return;
        }
        let _ = work;
        data.chunks_mut(chunk).enumerate().for_each(|(i, part)| task(i, part));
    }

    /// Whether so much work is worth another thread.
    #[cfg(not(target_arch = "wasm32"))]
    fn pays(&self, work: usize) -> bool {
        self.threads > 1 && work >= WORTH_A_WAKE_UP
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn install(&self, work: impl FnOnce() + Send) {
        match &self.pool {
            Some(pool) => pool.install(work),
            None => work(),
        }
    }
}

/// A row-major matrix that several tasks fill, each its own elements.
///
/// A task owns a tile (some columns of some rows), and tiles are not contiguous, so slices cannot express the split.
pub(super) struct Tiles<'a> {
    start: *mut f32,
    rows: usize,
    stride: usize,
    matrix: PhantomData<&'a mut [f32]>,
}

// SAFETY: the only accesses are `set`, `set_run` and `set_array`. Their contracts forbid two threads to touch the same
// element.
unsafe impl Sync for Tiles<'_> {}
// SAFETY: as above; the pointer stands for an exclusive borrow, which may move to another thread.
unsafe impl Send for Tiles<'_> {}

impl<'a> Tiles<'a> {
    /// A matrix with rows of `stride` elements.
    pub(super) fn new(data: &'a mut [f32], stride: usize) -> Self {
        assert!(stride > 0 && data.len().is_multiple_of(stride), "a matrix has whole rows");
        Self { start: data.as_mut_ptr(), rows: data.len() / stride, stride, matrix: PhantomData }
    }

    /// Writes some elements of a row.
    ///
    /// # Safety
    /// As for [`Tiles::set`].
    pub(super) unsafe fn set_run(&self, row: usize, column: usize, values: &[f32]) {
        let fits = column <= self.stride && values.len() <= self.stride - column;
        assert!(row < self.rows && fits, "a tile ends outside its matrix");
        // SAFETY: in bounds by the assertion; not shared by the caller's promise.
        unsafe {
            let to = self.start.add(row * self.stride + column);
            std::ptr::copy_nonoverlapping(values.as_ptr(), to, values.len());
        }
    }

    /// As [`Tiles::set_run`], for a length known at compile time: no call to a copy function.
    ///
    /// # Safety
    /// As for [`Tiles::set`].
    #[inline(always)]
    pub(super) unsafe fn set_array<const N: usize>(&self, row: usize, column: usize, values: [f32; N]) {
        let fits = column <= self.stride && N <= self.stride - column;
        assert!(row < self.rows && fits, "a tile ends outside its matrix");
        // SAFETY: in bounds by the assertion; not shared by the caller's promise.
        unsafe { self.start.add(row * self.stride + column).cast::<[f32; N]>().write_unaligned(values) }
    }

    /// Writes one element.
    ///
    /// # Safety
    /// No two tasks may write the same `(row, column)` while the matrix is shared.
    #[inline(always)]
    pub(super) unsafe fn set(&self, row: usize, column: usize, value: f32) {
        assert!(row < self.rows && column < self.stride, "a tile ends outside its matrix");
        // SAFETY: in bounds by the assertion; not shared by the caller's promise.
        unsafe { *self.start.add(row * self.stride + column) = value }
    }
}
