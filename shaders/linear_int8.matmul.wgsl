// y[t, row] = sum over columns of W[row, column] * x[t, column] + bias[row], for many tokens with INT8 activations. The
// variants differ in how they compute a dot product of four: shared/dot_*.
//
// Tiles have 32 rows, 32 tokens and 32 columns, as in linear_float.matmul. Products are summed as integers within four
// columns, or over the whole row if it has a single scale.

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

const TILE: u32 = 32u;
const TILE_QUADS: u32 = 8u;
// One more than the quads of a tile row, so that neighboring rows are in different banks.
const STRIDE: u32 = 9u;

// [TILE, STRIDE]
var<workgroup> w_tile: array<Quad, 288>;
// [TILE, STRIDE]
var<workgroup> x_tile: array<Quad, 288>;
// [TILE, STRIDE]
var<workgroup> scale_tile: array<f32, 288>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let first_row = flat(workgroup, workgroups) * TILE;
    let first_token = workgroup.z * TILE;
    let tile_units = TILE_QUADS / UNIT_QUADS;
    // The first row and token of this invocation. It computes every eighth row and token from there.
    let my_row = index % 8u;
    let my_token = index / 8u;
    // [token] of vectors over rows
    var integers = array<vec4<i32>, 4>();
    var floats = array<vec4<f32>, 4>();
    for (var first_unit = 0u; first_unit < p.units; first_unit += tile_units) {
        for (var i = index; i < TILE * tile_units; i += 64u) {
            load_unit(first_row, i / tile_units, first_unit, i % tile_units);
        }
        for (var i = index; i < TILE * TILE_QUADS; i += 64u) {
            load_x(first_token, i / TILE_QUADS, first_unit * UNIT_QUADS, i % TILE_QUADS);
        }
        workgroupBarrier();
        for (var quad = 0u; quad < TILE_QUADS; quad++) {
            var w_quads = array<Quad, 4>();
            var w_scales = vec4(0.0);
            for (var r = 0u; r < 4u; r++) {
                w_quads[r] = w_tile[(my_row + 8u * r) * STRIDE + quad];
                w_scales[r] = scale_tile[(my_row + 8u * r) * STRIDE + quad];
            }
            for (var t = 0u; t < 4u; t++) {
                let x_values = x_tile[(my_token + 8u * t) * STRIDE + quad];
                let products = vec4(
                    quad_dot(w_quads[0], x_values),
                    quad_dot(w_quads[1], x_values),
                    quad_dot(w_quads[2], x_values),
                    quad_dot(w_quads[3], x_values),
                );
                if ONE_GROUP {
                    integers[t] += products;
                } else {
                    floats[t] += vec4<f32>(products) * w_scales;
                }
            }
        }
        workgroupBarrier();
    }
    for (var r = 0u; r < 4u; r++) {
        let row = first_row + my_row + 8u * r;
        for (var t = 0u; t < 4u; t++) {
            let token = first_token + my_token + 8u * t;
            if row < p.rows && token < p.tokens {
                let value = scaled(row, integers[t][r], floats[t][r], factors[token]);
                y[token * p.y_stride + p.y_start + row] = value;
            }
        }
    }
}

fn load_unit(first_row: u32, tile_row: u32, first_unit: u32, tile_unit: u32) {
    let row = first_row + tile_row;
    let unit = first_unit + tile_unit;
    let inside = row < p.rows && unit < p.units;
    var scale = 0.0;
    var zero = 0u;
    var word = 0u;
    if inside {
        let scale_index = row * p.groups + unit / p.units_per_group;
        scale = scales[scale_index];
        zero = zero_point(scale_index);
        word = weights[row * p.units + unit];
    }
    for (var quad = 0u; quad < UNIT_QUADS; quad++) {
        let at = tile_row * STRIDE + tile_unit * UNIT_QUADS + quad;
        w_tile[at] = w_quad(word, quad, zero);
        scale_tile[at] = scale;
    }
}

fn load_x(first_token: u32, tile_token: u32, first_quad: u32, tile_quad: u32) {
    let token = first_token + tile_token;
    let quad = first_quad + tile_quad;
    var values = Quad();
    if token < p.tokens && quad < p.units * UNIT_QUADS {
        values = x_quad(x_word(token, quad));
    }
    x_tile[tile_token * STRIDE + tile_quad] = values;
}
