//! Parallel work on chunks of a slice.
//!
//! Work is split between results, never inside a sum, so the number of threads does not change a result. WebAssembly
//! has one thread. Backends split their work themselves, on the same threads by default.

/// The number of parallel tasks.
pub fn lanes() -> usize {
    #[cfg(not(target_arch = "wasm32"))]
    return rayon::current_num_threads().max(1);
    #[cfg(target_arch = "wasm32")]
    1
}

/// Makes the calling thread a worker of the thread pool, which has `threads` threads or as many as the machine offers.
/// Call it on the first thread of a process before any task. Later calls have no effect.
#[cfg(not(target_arch = "wasm32"))]
pub fn take_part(threads: Option<std::num::NonZeroUsize>) {
    let threads = threads.map_or(0, std::num::NonZeroUsize::get);
    // An error means that the pool exists already.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).use_current_thread().build_global();
}

/// Calls `task(index, chunk)` for every `chunk` elements of `data`; the last may be shorter.
///
/// # Panics
/// When `chunk` is 0.
pub fn for_each_chunk<T: Send>(data: &mut [T], chunk: usize, task: impl Fn(usize, &mut [T]) + Sync + Send) {
    #[cfg(not(target_arch = "wasm32"))]
    if data.len() > chunk {
        use rayon::prelude::*;
        data.par_chunks_mut(chunk).enumerate().for_each(|(index, part)| task(index, part));
        return;
    }
    data.chunks_mut(chunk).enumerate().for_each(|(index, part)| task(index, part));
}
