//! Counts the memory that the current thread has allocated, so that a test can bound it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    /// Bytes allocated now and the most there have been. Signed: a thread may free what another one allocated.
    static CURRENT: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count(bytes: isize) {
    // A thread that is being torn down has no counters any more, and no test either.
    let _ = CURRENT.try_with(|current| {
        current.set(current.get() + bytes);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(current.get())));
    });
}

// SAFETY: every call goes to the system's allocator with the caller's own arguments, so its guarantees are ours;
// counting touches only constant-initialised thread locals, which never allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: `pointer` came from `alloc` above, which is the system's.
        unsafe { System.dealloc(pointer, layout) }
    }

    // A large zeroed allocation costs nothing until it is touched, but a hostile length must not get even that.
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // Old and new may exist side by side for a moment.
        count(new_size as isize);
        count(-(layout.size() as isize));
        // SAFETY: `pointer` came from this allocator, which is the system's.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}

/// The most bytes that `work` had allocated at one time, beyond what was there before, on this thread.
pub fn peak_of(work: impl FnOnce()) -> usize {
    let before = CURRENT.get();
    PEAK.set(before);
    work();
    (PEAK.get() - before).max(0) as usize
}

/// Runs what is not part of the parser, such as an oracle, without its temporary memory counting for [`peak_of`].
pub fn unmeasured<T>(work: impl FnOnce() -> T) -> T {
    let peak = PEAK.get();
    let result = work();
    PEAK.set(peak);
    result
}

#[test]
fn a_large_allocation_is_seen() {
    let peak = peak_of(|| drop(std::hint::black_box(vec![0u8; 1 << 20])));
    assert!((1 << 20..1 << 21).contains(&peak), "{peak}");
    assert_eq!(peak_of(|| ()), 0);
    assert_eq!(peak_of(|| unmeasured(|| drop(std::hint::black_box(vec![0u8; 1 << 20])))), 0);
}
