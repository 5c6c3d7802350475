// y[t, row] = sum over columns of W[row, column] * x[t, column] + bias[row], for many tokens.
//
// A workgroup computes a tile of 32 rows and 32 tokens, 32 columns at a time. It decodes the weights once into shared
// memory (shared/tile_* sets their type). Each invocation computes 4 rows times 4 tokens.

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

const TILE: u32 = 32u;
const TILE_QUADS: u32 = 8u;
// One more than the quads of a tile row, so that neighboring rows are in different banks.
const STRIDE: u32 = 9u;

// [TILE, STRIDE]
var<workgroup> w_tile: array<TileQuad, 288>;
// [TILE, STRIDE]
var<workgroup> x_tile: array<vec4<f32>, 288>;

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
    var sums = array<vec4<f32>, 4>();
    for (var first_unit = 0u; first_unit < p.units; first_unit += tile_units) {
        for (var i = index; i < TILE * tile_units; i += 64u) {
            load_unit(first_row, i / tile_units, first_unit, i % tile_units);
        }
        for (var i = index; i < TILE * TILE_QUADS; i += 64u) {
            load_x(first_token, i / TILE_QUADS, first_unit, i % TILE_QUADS);
        }
        workgroupBarrier();
        for (var quad = 0u; quad < TILE_QUADS; quad++) {
            var w_quads = array<vec4<f32>, 4>();
            for (var r = 0u; r < 4u; r++) {
                w_quads[r] = vec4<f32>(w_tile[(my_row + 8u * r) * STRIDE + quad]);
            }
            for (var t = 0u; t < 4u; t++) {
                let x_values = x_tile[(my_token + 8u * t) * STRIDE + quad];
                sums[t] += vec4(
                    dot(w_quads[0], x_values),
                    dot(w_quads[1], x_values),
                    dot(w_quads[2], x_values),
                    dot(w_quads[3], x_values),
                );
            }
        }
        workgroupBarrier();
    }
    for (var r = 0u; r < 4u; r++) {
        let row = first_row + my_row + 8u * r;
        for (var t = 0u; t < 4u; t++) {
            let token = first_token + my_token + 8u * t;
            if row < p.rows && token < p.tokens {
                var value = sums[t][r];
                if p.has_bias != 0u {
                    value += bias[row];
                }
                y[token * p.y_stride + p.y_start + row] = value;
            }
        }
    }
}

fn load_unit(first_row: u32, tile_row: u32, first_unit: u32, tile_unit: u32) {
    let row = first_row + tile_row;
    let unit = first_unit + tile_unit;
    let inside = row < p.rows && unit < p.units;
    var group = Affine(0.0, 0.0);
    if inside {
        group = affine(row, unit / p.units_per_group);
    }
    for (var quad = 0u; quad < UNIT_QUADS; quad++) {
        var values = vec4(0.0);
        if inside {
            values = (unit_quad((row * p.units + unit) * UNIT_WORDS, quad) - group.zero) * group.scale;
        }
        w_tile[tile_row * STRIDE + tile_unit * UNIT_QUADS + quad] = TileQuad(values);
    }
}

fn load_x(first_token: u32, tile_token: u32, first_unit: u32, tile_quad: u32) {
    let token = first_token + tile_token;
    let unit = first_unit + tile_quad / UNIT_QUADS;
    var values = vec4(0.0);
    if token < p.tokens && unit < p.units {
        let at = span(unit);
        values = x_quad(token, at.start + tile_quad % UNIT_QUADS * 4u, at.end);
    }
    x_tile[tile_token * STRIDE + tile_quad] = values;
}
