//! Properties of the machine.

/// Memory available without swapping, in bytes: the machine's, or the container's if it is smaller.
#[cfg(not(target_arch = "wasm32"))]
pub fn available_memory() -> Option<u64> {
    use sysinfo::{MemoryRefreshKind, System};
    let mut system = System::new();
    system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
    let free = [system.available_memory()]
        .into_iter()
        .chain(system.cgroup_limits().map(|limits| limits.free_memory));
    // 0 means unknown.
    free.filter(|&bytes| bytes > 0).min()
}

/// Addressable memory that a module does not use yet, in bytes. The machine's memory is unknown.
#[cfg(target_arch = "wasm32")]
pub fn available_memory() -> Option<u64> {
    const PAGE_BYTES: u64 = 1 << 16;
    let taken = core::arch::wasm32::memory_size::<0>() as u64 * PAGE_BYTES;
    Some((1 << 32) - taken)
}

/// Size of the first processor's last-level cache in bytes.
pub fn last_level_cache() -> Option<u64> {
    let caches = std::fs::read_dir("/sys/devices/system/cpu/cpu0/cache").ok()?;
    let size = |entry: std::io::Result<std::fs::DirEntry>| {
        let text = std::fs::read_to_string(entry.ok()?.path().join("size")).ok()?;
        let kib: u64 = text.trim().strip_suffix('K')?.parse().ok()?;
        Some(kib * 1024)
    };
    caches.filter_map(size).max()
}
