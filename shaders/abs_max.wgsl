// out[column] = max(out[column], |x[t, column]| over all tokens): one invocation for each column. What AWQ scales by.
//
// A NaN or an infinity in a column gives NaN or infinity.

// [tokens, cols]
@group(0) @binding(0) var<storage, read> x: array<f32>;
// [cols]
@group(0) @binding(1) var<storage, read_write> out: array<f32>;
@group(0) @binding(2) var<uniform> p: Params;

struct Params {
    tokens: u32,
    cols: u32,
    padding_0: u32,
    padding_1: u32,
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let column = flat(workgroup, workgroups) * 64u + lane;
    if column >= p.cols {
        return;
    }
    // Magnitudes have the order of their bits, and so NaN is above infinity.
    var most = bitcast<u32>(out[column]);
    for (var t = 0u; t < p.tokens; t++) {
        most = max(most, bitcast<u32>(x[t * p.cols + column]) & 0x7fffffffu);
    }
    out[column] = bitcast<f32>(most);
}
