// Attention with an online softmax (Milakov and Gimelshein 2018). One workgroup per query head of a token.
//
// Processes positions in blocks of 64. Each invocation computes the score of one position, then sums some elements of
// the values.

// [tokens, (heads + 2 * kv_heads) * head_dim]
@group(0) @binding(0) var<storage, read> qkv: array<f32>;
// [kv_heads, capacity, head_dim]
@group(0) @binding(1) var<storage, read> keys: array<f32>;
// [kv_heads, capacity, head_dim]
@group(0) @binding(2) var<storage, read> values: array<f32>;
// [tokens, heads * head_dim]
@group(0) @binding(3) var<storage, read_write> out: array<f32>;
// [segments]
@group(0) @binding(4) var<storage, read> segments: array<Segment>;
@group(0) @binding(5) var<uniform> p: Params;

const BLOCK: u32 = 64u;

// [head_dim], at most 256
var<workgroup> query: array<f32, 256>;
// [BLOCK]
var<workgroup> scores: array<f32, 64>;
// [BLOCK]
var<workgroup> shares: array<f32, 64>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let item = flat(workgroup, workgroups);
    if item >= p.tokens * p.heads {
        return;
    }
    let token = item / p.heads;
    let head = item % p.heads;
    let segment = segment_of(token);
    let cached = (head / (p.heads / p.kv_heads) * p.capacity + segment.start) * p.head_dim;
    let q_start = (token * (p.heads + 2u * p.kv_heads) + head) * p.head_dim;
    for (var i = lane; i < p.head_dim; i += BLOCK) {
        query[i] = qkv[q_start + i];
    }
    workgroupBarrier();
    let seen = seen_by(segment, token - segment.row);
    var largest = LOWEST;
    var total = 0.0;
    // The sums of elements lane, lane + 64, lane + 128 and lane + 192.
    var sum = vec4(0.0);
    for (var start = 0u; start < seen; start += BLOCK) {
        let length = min(BLOCK, seen - start);
        var score = LOWEST;
        if lane < length {
            score = score_of(cached + (start + lane) * p.head_dim);
        }
        scores[lane] = score;
        workgroupBarrier();
        var new_largest = largest;
        for (var i = 0u; i < length; i++) {
            new_largest = max(new_largest, scores[i]);
        }
        shares[lane] = exp(score - new_largest);
        workgroupBarrier();
        let correction = exp(largest - new_largest);
        largest = new_largest;
        total *= correction;
        sum *= correction;
        for (var i = 0u; i < length; i++) {
            let share = shares[i];
            total += share;
            for (var part = 0u; part < 4u; part++) {
                let element = lane + part * BLOCK;
                if element < p.head_dim {
                    sum[part] += share * values[cached + (start + i) * p.head_dim + element];
                }
            }
        }
    }
    for (var part = 0u; part < 4u; part++) {
        let element = lane + part * BLOCK;
        if element < p.head_dim {
            out[item * p.head_dim + element] = sum[part] / total;
        }
    }
}

fn first_of(segment: u32) -> u32 {
    return segments[segment].row;
}

fn score_of(key: u32) -> f32 {
    var score = 0.0;
    for (var i = 0u; i < p.head_dim; i++) {
        score += query[i] * keys[key + i];
    }
    return score * p.scale;
}
