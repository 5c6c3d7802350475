// Quantizes each token's activations to INT8 and dequantizes them, for dense weights. One workgroup per token.

// [tokens, cols]
@group(0) @binding(0) var<storage, read> x: array<f32>;
// [tokens, cols]
@group(0) @binding(1) var<storage, read_write> rounded_x: array<f32>;
@group(0) @binding(2) var<uniform> p: Params;

struct Params {
    tokens: u32,
    cols: u32,
    full_range: u32,
    padding: u32,
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let t = flat(workgroup, workgroups);
    if t >= p.tokens {
        return;
    }
    let first = t * p.cols;
    var seen = Seen(0.0, 0u);
    for (var i = lane; i < p.cols; i += QUANTIZE_LANES) {
        seen = look(seen, x[first + i]);
    }
    let token = agree(seen, lane);
    for (var i = lane; i < p.cols; i += QUANTIZE_LANES) {
        let value = x[first + i];
        // NaN and infinity pass unchanged.
        let finite = (bitcast<u32>(value) & 0x7f800000u) != 0x7f800000u;
        rounded_x[first + i] = select(value, restored(rounded(value, token), token), finite);
    }
}
