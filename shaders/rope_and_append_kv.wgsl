// Normalizes the heads of q and k (if the model has norms for them) and rotates them in place. Copies k and v to the
// cache. One workgroup per head of a token. Element i pairs with i + head_dim / 2.

// [tokens, (heads + 2 * kv_heads) * head_dim]
@group(0) @binding(0) var<storage, read_write> qkv: array<f32>;
// [positions, head_dim]: cosines, then sines
@group(0) @binding(1) var<storage, read> rope: array<f32>;
// [head_dim]
@group(0) @binding(2) var<storage, read> q_norm: array<f32>;
// [head_dim]
@group(0) @binding(3) var<storage, read> k_norm: array<f32>;
// [kv_heads, capacity, head_dim]
@group(0) @binding(4) var<storage, read_write> keys: array<f32>;
// [kv_heads, capacity, head_dim]
@group(0) @binding(5) var<storage, read_write> values: array<f32>;
// [segments]
@group(0) @binding(6) var<storage, read> segments: array<Segment>;
@group(0) @binding(7) var<uniform> p: Params;

struct Params {
    tokens: u32,
    segments: u32,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    capacity: u32,
    has_norms: u32,
    padding: u32,
    q_epsilon: f32,
    k_epsilon: f32,
    padding_0: u32,
    padding_1: u32,
}

const LANES: u32 = 64u;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let all_heads = p.heads + 2u * p.kv_heads;
    let item = flat(workgroup, workgroups);
    if item >= p.tokens * all_heads {
        return;
    }
    let token = item / all_heads;
    let head = item % all_heads;
    let first = item * p.head_dim;
    let segment = segment_of(token);
    let position = segment.past + token - segment.row;
    let place = segment.start + position;
    if head >= p.heads + p.kv_heads {
        let cached = ((head - p.heads - p.kv_heads) * p.capacity + place) * p.head_dim;
        for (var i = lane; i < p.head_dim; i += LANES) {
            values[cached + i] = qkv[first + i];
        }
        return;
    }
    let is_key = head >= p.heads;
    var factor = 1.0;
    if p.has_norms != 0u {
        factor = inverse_rms(first, select(p.q_epsilon, p.k_epsilon, is_key), lane);
    }
    let half_dim = p.head_dim / 2u;
    let cached = ((head - p.heads) * p.capacity + place) * p.head_dim;
    for (var i = lane; i < half_dim; i += LANES) {
        var low = qkv[first + i];
        var high = qkv[first + half_dim + i];
        if p.has_norms != 0u {
            low = low * factor * norm_weight(is_key, i);
            high = high * factor * norm_weight(is_key, half_dim + i);
        }
        let cosine = rope[position * p.head_dim + i];
        let sine = rope[position * p.head_dim + half_dim + i];
        let rotated = vec2(low * cosine - high * sine, high * cosine + low * sine);
        qkv[first + i] = rotated.x;
        qkv[first + half_dim + i] = rotated.y;
        if is_key {
            keys[cached + i] = rotated.x;
            keys[cached + half_dim + i] = rotated.y;
        }
    }
}

fn first_of(segment: u32) -> u32 {
    return segments[segment].row;
}

fn norm_weight(is_key: bool, i: u32) -> f32 {
    if is_key {
        return k_norm[i];
    }
    return q_norm[i];
}

fn inverse_rms(first: u32, epsilon: f32, lane: u32) -> f32 {
    var sum = 0.0;
    for (var i = lane; i < p.head_dim; i += LANES) {
        let value = qkv[first + i];
        sum += value * value;
    }
    return 1.0 / sqrt(total_of(sum, lane) / f32(p.head_dim) + epsilon);
}
