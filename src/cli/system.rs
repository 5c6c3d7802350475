//! What the machine has, where the system tells.

/// Bytes that programs may still take without swapping: the machine's, or those of the container if they are fewer.
#[cfg(not(target_arch = "wasm32"))]
pub fn available_memory() -> Option<u64> {
    use sysinfo::{MemoryRefreshKind, System};
    let mut system = System::new();
    system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
    let free = [system.available_memory()]
        .into_iter()
        .chain(system.cgroup_limits().map(|limits| limits.free_memory));
    // 0 is what is said where nothing is known.
    free.filter(|&bytes| bytes > 0).min()
}

/// Bytes that a module may still take, of those that it can address; nothing is known of the machine's.
#[cfg(target_arch = "wasm32")]
pub fn available_memory() -> Option<u64> {
    const PAGE_BYTES: u64 = 1 << 16;
    let taken = core::arch::wasm32::memory_size::<0>() as u64 * PAGE_BYTES;
    Some((1 << 32) - taken)
}

/// Bytes of the largest cache of the first processor.
pub fn last_level_cache() -> Option<u64> {
    let caches = std::fs::read_dir("/sys/devices/system/cpu/cpu0/cache").ok()?;
    let size = |entry: std::io::Result<std::fs::DirEntry>| {
        let text = std::fs::read_to_string(entry.ok()?.path().join("size")).ok()?;
        let kib: u64 = text.trim().strip_suffix('K')?.parse().ok()?;
        Some(kib * 1024)
    };
    caches.filter_map(size).max()
}
