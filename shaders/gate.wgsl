// out[t, i] = act(gate[t, i]) * up[t, i]. One invocation per element.

// [tokens, 2 * width], gate first
@group(0) @binding(0) var<storage, read> gate_up: array<f32>;
// [tokens, width]
@group(0) @binding(1) var<storage, read_write> out: array<f32>;
@group(0) @binding(2) var<uniform> p: Params;

struct Params {
    tokens: u32,
    width: u32,
    padding_0: u32,
    padding_1: u32,
}

const SILU: u32 = 0u;
const SQUARED_RELU: u32 = 1u;
override ACTIVATION: u32 = SILU;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = flat(workgroup, workgroups) * 64u + lane;
    if i >= p.tokens * p.width {
        return;
    }
    let first = i / p.width * 2u * p.width + i % p.width;
    out[i] = activate(gate_up[first]) * gate_up[first + p.width];
}

fn activate(gate: f32) -> f32 {
    if ACTIVATION == SILU {
        // The limit keeps the exponential finite. Beyond it, the result is 0 to 33 decimal places.
        return gate / (1.0 + exp(min(-gate, 80.0)));
    }
    // This form passes a NaN through.
    let positive = select(gate, 0.0, gate < 0.0);
    return positive * positive;
}
