// add_rms_norm and linear_int8.quantize fused: residual += delta (if there is a delta), then out = residual /
// sqrt(mean(residual^2) + epsilon) * weight, then out quantized to INT8 with one factor per token. One workgroup per
// token.
//
// Each invocation adds, scales and rounds the same columns: those of every LANES-th word. So no invocation reads what
// another invocation has written to a buffer.

// [tokens, cols]
@group(0) @binding(0) var<storage, read_write> residual: array<f32>;
// [tokens, cols]
@group(0) @binding(1) var<storage, read> delta: array<f32>;
// [cols]
@group(0) @binding(2) var<storage, read> weight: array<f32>;
// [tokens, cols]
@group(0) @binding(3) var<storage, read_write> out: array<f32>;
// [tokens, units, UNIT_QUADS]
@group(0) @binding(4) var<storage, read_write> rounded_x: array<u32>;
// [tokens]: the factor that multiplied the activations, or NaN
@group(0) @binding(5) var<storage, read_write> factors: array<f32>;
@group(0) @binding(6) var<uniform> p: Params;

struct Params {
    tokens: u32,
    cols: u32,
    units: u32,
    units_per_group: u32,
    group_size: u32,
    unit_quads: u32,
    nan_bits: u32,
    full_range: u32,
    has_delta: u32,
    epsilon: f32,
    padding_0: u32,
    padding_1: u32,
}

const LANES: u32 = QUANTIZE_LANES;

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
    var sum = 0.0;
    for (var quad = lane; quad < quads; quad += LANES) {
        let at = quad_span(quad);
        for (var i = first + at.start; i < first + at.end; i++) {
            var value = residual[i];
            if p.has_delta != 0u {
                value += delta[i];
                residual[i] = value;
            }
            sum += value * value;
        }
    }
    let factor = 1.0 / sqrt(total_of(sum, lane) / f32(p.cols) + p.epsilon);
    var seen = Seen(0.0, 0u);
    for (var quad = lane; quad < quads; quad += LANES) {
        let at = quad_span(quad);
        for (var i = at.start; i < at.end; i++) {
            let value = residual[first + i] * factor * weight[i];
            out[first + i] = value;
            seen = look(seen, value);
        }
    }
    let token = agree(seen, lane);
    if lane == 0u {
        factors[t] = factor_of(token);
    }
    for (var quad = lane; quad < quads; quad += LANES) {
        let at = quad_span(quad);
        var word = 0u;
        for (var i = 0u; at.start + i < at.end; i++) {
            word |= byte_of(out[first + at.start + i], token) << (8u * i);
        }
        rounded_x[t * quads + quad] = word;
    }
}
