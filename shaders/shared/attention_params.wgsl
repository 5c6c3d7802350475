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

// Below every score; infinities are not safe in shaders.
const LOWEST: f32 = -3.0e38;

// How many positions row `index` of a segment sees.
fn seen_by(segment: Segment, index: u32) -> u32 {
    return segment.past + select(index + 1u, segment.count, segment.full != 0u);
}
