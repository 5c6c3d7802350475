// Attention with an online softmax over tiles (Dao et al. 2022). One workgroup per query head and 8 tokens of a
// segment.
//
// Processes positions in blocks of 16. The 8 queries share the block's keys, then its values. 8 invocations serve each
// query.

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

const QUERIES: u32 = 8u;
const LANES: u32 = 8u;
const BLOCK: u32 = 16u;
const MOST_HEAD_DIM: u32 = 128u;
// The largest number of head elements that one invocation sums.
const MOST_PARTS: u32 = 16u;

// [QUERIES, head_dim]
var<workgroup> queries: array<f32, 1024>;
// [BLOCK, head_dim]: keys, then values
var<workgroup> block: array<f32, 2048>;
// [QUERIES, BLOCK]
var<workgroup> scores: array<f32, 128>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let item = flat(workgroup, workgroups);
    if item >= p.tiles * p.heads {
        return;
    }
    let head = item / p.tiles;
    let segment = segment_of(item % p.tiles);
    // Indices within the segment.
    let first_token = (item % p.tiles - segment.tile) * QUERIES;
    let last_token = min(first_token + QUERIES, segment.count) - 1u;
    let cached = (head / (p.heads / p.kv_heads) * p.capacity + segment.start) * p.head_dim;
    for (var i = index; i < QUERIES * p.head_dim; i += 64u) {
        // Past the last token, the last query is loaded again and its result is dropped.
        let token = min(first_token + i / p.head_dim, last_token);
        queries[i] = qkv[((segment.row + token) * (p.heads + 2u * p.kv_heads) + head) * p.head_dim + i % p.head_dim];
    }
    let query = index / LANES;
    let lane = index % LANES;
    let token = first_token + query;
    let seen = seen_by(segment, token);
    // The number of positions visible to the tile's last token.
    let most_seen = seen_by(segment, last_token);
    var largest = LOWEST;
    var total = 0.0;
    var sums = array<f32, MOST_PARTS>();
    for (var start = 0u; start < most_seen; start += BLOCK) {
        let length = min(BLOCK, most_seen - start);
        workgroupBarrier();
        for (var i = index; i < length * p.head_dim; i += 64u) {
            block[i] = keys[cached + start * p.head_dim + i];
        }
        workgroupBarrier();
        for (var i = lane; i < BLOCK; i += LANES) {
            var score = LOWEST;
            if i < length && start + i < seen {
                score = score_of(query, i);
            }
            scores[query * BLOCK + i] = score;
        }
        workgroupBarrier();
        for (var i = index; i < length * p.head_dim; i += 64u) {
            block[i] = values[cached + start * p.head_dim + i];
        }
        workgroupBarrier();
        if start < seen {
            let visible = min(length, seen - start);
            var new_largest = largest;
            for (var i = 0u; i < visible; i++) {
                new_largest = max(new_largest, scores[query * BLOCK + i]);
            }
            let correction = exp(largest - new_largest);
            largest = new_largest;
            total *= correction;
            for (var part = 0u; part < MOST_PARTS; part++) {
                sums[part] *= correction;
            }
            for (var i = 0u; i < visible; i++) {
                let share = exp(scores[query * BLOCK + i] - new_largest);
                total += share;
                for (var part = 0u; lane + part * LANES < p.head_dim; part++) {
                    sums[part] += share * block[i * p.head_dim + lane + part * LANES];
                }
            }
        }
    }
    if token <= last_token {
        for (var part = 0u; lane + part * LANES < p.head_dim; part++) {
            out[((segment.row + token) * p.heads + head) * p.head_dim + lane + part * LANES] = sums[part] / total;
        }
    }
}

fn first_of(segment: u32) -> u32 {
    return segments[segment].tile;
}

fn score_of(query: u32, position: u32) -> f32 {
    var score = 0.0;
    for (var i = 0u; i < p.head_dim; i++) {
        score += queries[query * p.head_dim + i] * block[position * p.head_dim + i];
    }
    return score * p.scale;
}
