struct Params {
    tokens: u32,
    past: u32,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    capacity: u32,
    // 1 / sqrt(head_dim)
    scale: f32,
    padding: u32,
}

// Below every score; infinities are not safe in shaders.
const LOWEST: f32 = -3.0e38;
