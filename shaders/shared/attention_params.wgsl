struct Params {
    tokens: u32,
    tiles: u32,
    segments: u32,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    capacity: u32,
    // 1 / sqrt(head_dim)
    scale: f32,
}

// Less than every score. Shaders may not rely on infinities.
const LOWEST: f32 = -3.0e38;

// The number of positions visible to row `index` of a segment.
fn seen_by(segment: Segment, index: u32) -> u32 {
    return segment.past + select(index + 1u, segment.count, segment.full != 0u);
}
