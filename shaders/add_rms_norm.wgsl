// residual += delta (if there is a delta), then out = residual / sqrt(mean(residual^2) + epsilon) * weight. One
// workgroup per row.

// [rows, width]
@group(0) @binding(0) var<storage, read_write> residual: array<f32>;
// [rows, width]
@group(0) @binding(1) var<storage, read> delta: array<f32>;
// [width]
@group(0) @binding(2) var<storage, read> weight: array<f32>;
// [rows, width]
@group(0) @binding(3) var<storage, read_write> out: array<f32>;
@group(0) @binding(4) var<uniform> p: Params;

struct Params {
    rows: u32,
    width: u32,
    has_delta: u32,
    epsilon: f32,
}

const LANES: u32 = 256u;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = flat(workgroup, workgroups);
    if row >= p.rows {
        return;
    }
    let first = row * p.width;
    var sum = 0.0;
    for (var i = lane; i < p.width; i += LANES) {
        var value = residual[first + i];
        if p.has_delta != 0u {
            value += delta[first + i];
            residual[first + i] = value;
        }
        sum += value * value;
    }
    let factor = 1.0 / sqrt(total_of(sum, lane) / f32(p.width) + p.epsilon);
    for (var i = lane; i < p.width; i += LANES) {
        out[first + i] = residual[first + i] * factor * weight[i];
    }
}
