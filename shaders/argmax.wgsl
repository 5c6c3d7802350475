// out[row] = the index of the largest value of x[row, :], the lowest index among equals. One workgroup per row.
//
// The result is NONE if any value is NaN or plus infinity, or if all are minus infinity.

// [rows, width]
@group(0) @binding(0) var<storage, read> x: array<f32>;
// [rows]
@group(0) @binding(1) var<storage, read_write> out: array<u32>;
@group(0) @binding(2) var<uniform> p: Params;

struct Params {
    rows: u32,
    width: u32,
    padding_0: u32,
    padding_1: u32,
}

const LANES: u32 = 256u;
const NONE: u32 = 0xffffffffu;

// [LANES]: the ordered key of the largest value of each invocation; 0 if there is none yet.
var<workgroup> keys: array<u32, 256>;
// [LANES]
var<workgroup> indices: array<u32, 256>;

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
    var best = 0u;
    var best_index = NONE;
    for (var i = lane; i < p.width; i += LANES) {
        let key = ordered_key(x[row * p.width + i]);
        if key > best {
            best = key;
            best_index = i;
        }
    }
    keys[lane] = best;
    indices[lane] = best_index;
    for (var step = LANES / 2u; step > 0u; step /= 2u) {
        workgroupBarrier();
        if lane < step {
            let other = keys[lane + step];
            let other_index = indices[lane + step];
            if other > keys[lane] || (other == keys[lane] && other_index < indices[lane]) {
                keys[lane] = other;
                indices[lane] = other_index;
            }
        }
    }
    if lane == 0u {
        out[row] = select(indices[0], NONE, keys[0] == BROKEN_KEY);
    }
}
