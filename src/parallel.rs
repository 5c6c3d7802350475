//! Pure maths on several threads: the pieces of a slice, each worked on alone.
//!
//! Work is cut by what is computed, never inside a sum, so the number of threads does not change a result. One thread in
//! WebAssembly. Not here: how a backend cuts its work (its threads are these, unless it is asked for others).

/// How many tasks can run at once.
pub fn lanes() -> usize {
    #[cfg(not(target_arch = "wasm32"))]
    return rayon::current_num_threads().max(1);
    #[cfg(target_arch = "wasm32")]
    1
}

/// Makes the calling thread one of those that tasks run on, instead of one more that waits for them: of so many, or of as many as
/// the machine offers. For the first thread of a process, before there is any task; later it does nothing.
#[cfg(not(target_arch = "wasm32"))]
pub fn take_part(threads: Option<std::num::NonZeroUsize>) {
    let threads = threads.map_or(0, std::num::NonZeroUsize::get);
    // An error says that there are threads already.
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
