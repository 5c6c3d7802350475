// y[t, row] = sum over columns of W[row, column] * x[t, column] + bias[row], for few tokens.
//
// LANES invocations share four rows. Each one sums every LANES-th unit, so neighbors read neighboring words, and uses
// each loaded activation for all four rows. shared/lanes_* then adds the sums of the invocations.

// [rows, units, UNIT_WORDS]
@group(0) @binding(0) var<storage, read> weights: array<u32>;
// [rows, groups]
@group(0) @binding(1) var<storage, read> scales: array<f32>;
// [rows, groups], one byte each
@group(0) @binding(2) var<storage, read> zeros: array<u32>;
// [rows]
@group(0) @binding(3) var<storage, read> bias: array<f32>;
// [tokens, cols]
@group(0) @binding(4) var<storage, read> x: array<vec4<f32>>;
// [tokens, y_stride]
@group(0) @binding(5) var<storage, read_write> y: array<f32>;
@group(0) @binding(6) var<uniform> p: Params;

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
    var sum = vec4(0.0);
    if row < p.rows {
        for (var unit = lane; unit < p.units; unit += LANES) {
            sum += unit_products(row, unit, token);
        }
    }
    sum = add_floats(sum, index);
    if lane == 0u {
        for (var r = 0u; r < ROWS && row + r < p.rows; r++) {
            var value = sum[r];
            if p.has_bias != 0u {
                value += bias[row + r];
            }
            y[token * p.y_stride + p.y_start + row + r] = value;
        }
    }
}

// The contribution of one unit to the sums of four rows.
fn unit_products(row: u32, unit: u32, token: u32) -> vec4<f32> {
    let at = span(unit);
    var products = vec4(0.0);
    for (var r = 0u; r < ROWS; r++) {
        // Past the last row, the last row is computed again and its result is dropped.
        let this_row = min(row + r, p.rows - 1u);
        let group = affine(this_row, at.group);
        let word = (this_row * p.units + unit) * UNIT_WORDS;
        var product = 0.0;
        for (var quad = 0u; quad < UNIT_QUADS; quad++) {
            let x_values = x_quad(token, at.start + 4u * quad, at.end);
            product += dot(unit_quad(word, quad) - group.zero, x_values);
        }
        products[r] = product * group.scale;
    }
    return products;
}
