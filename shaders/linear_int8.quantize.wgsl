// Quantizes each token's activations to INT8, four to a word, in the order of the units of weights. Bytes beyond the
// end of a group are 0. One workgroup per token.

// [tokens, cols]
@group(0) @binding(0) var<storage, read> x: array<f32>;
// [tokens, units, UNIT_QUADS]
@group(0) @binding(1) var<storage, read_write> rounded_x: array<u32>;
// [tokens]: the factor that multiplied the activations, or NaN
@group(0) @binding(2) var<storage, read_write> factors: array<f32>;
@group(0) @binding(3) var<uniform> p: Params;

struct Params {
    tokens: u32,
    cols: u32,
    units: u32,
    units_per_group: u32,
    group_size: u32,
    unit_quads: u32,
    nan_bits: u32,
    full_range: u32,
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
    let quads = p.units * p.unit_quads;
    var seen = Seen(0.0, 0u);
    for (var i = lane; i < p.cols; i += QUANTIZE_LANES) {
        seen = look(seen, x[first + i]);
    }
    let token = agree(seen, lane);
    if lane == 0u {
        factors[t] = factor_of(token);
    }
    for (var quad = lane; quad < quads; quad += QUANTIZE_LANES) {
        let at = quad_span(quad);
        var word = 0u;
        for (var i = 0u; at.start + i < at.end; i++) {
            word |= byte_of(x[first + at.start + i], token) << (8u * i);
        }
        rounded_x[t * quads + quad] = word;
    }
}
