// y[t, row] = sum over columns of W[row, column] * x[t, column] + bias[row], for few tokens with INT8 activations. The
// variants differ in how they compute a dot product of four: shared/dot_*.
//
// LANES invocations share four rows, as in linear_float.matvec. Products are summed as integers within a unit, or over
// the whole row if it has a single scale.

// [rows, units]
@group(0) @binding(0) var<storage, read> weights: array<u32>;
// [rows, groups]
@group(0) @binding(1) var<storage, read> scales: array<f32>;
// [rows, groups], one byte each
@group(0) @binding(2) var<storage, read> zeros: array<u32>;
// [rows]
@group(0) @binding(3) var<storage, read> bias: array<f32>;
// [tokens, units, UNIT_QUADS]
@group(0) @binding(4) var<storage, read> rounded_x: array<u32>;
// [tokens]
@group(0) @binding(5) var<storage, read> factors: array<f32>;
// [tokens, y_stride]
@group(0) @binding(6) var<storage, read_write> y: array<f32>;
@group(0) @binding(7) var<uniform> p: Params;

const ROWS: u32 = 4u;
// A power of two, at most 64.
override LANES: u32 = 64u;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let lane = index % LANES;
    let row = (flat(workgroup, workgroups) * (64u / LANES) + index / LANES) * ROWS;
    let token = workgroup.z;
    var integers = vec4(0i);
    var floats = vec4(0.0);
    if row < p.rows {
        for (var unit = lane; unit < p.units; unit += LANES) {
            let group = unit / p.units_per_group;
            for (var r = 0u; r < ROWS; r++) {
                // Past the last row, the last row is computed again and its result is dropped.
                let this_row = min(row + r, p.rows - 1u);
                let scale_index = this_row * p.groups + group;
                let product = unit_product(this_row, unit, token, zero_point(scale_index));
                if ONE_GROUP {
                    integers[r] += product;
                } else {
                    floats[r] += f32(product) * scales[scale_index];
                }
            }
        }
    }
    if ONE_GROUP {
        integers = add_integers(integers, index);
    } else {
        floats = add_floats(floats, index);
    }
    if lane == 0u {
        for (var r = 0u; r < ROWS && row + r < p.rows; r++) {
            let value = scaled(row + r, integers[r], floats[r], factors[token]);
            y[token * p.y_stride + p.y_start + row + r] = value;
        }
    }
}

fn unit_product(row: u32, unit: u32, token: u32, zero: u32) -> i32 {
    let word = weights[row * p.units + unit];
    var product = 0i;
    for (var quad = 0u; quad < UNIT_QUADS; quad++) {
        product += quad_dot(w_quad(word, quad, zero), x_quad(x_word(token, unit * UNIT_QUADS + quad)));
    }
    return product;
}
