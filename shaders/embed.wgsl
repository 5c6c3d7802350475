// out[t, column] = table[tokens[t], column]. One workgroup per token.
//
// A large table is split by rows into several buffers. Each dispatch has one buffer and writes only the tokens in it. A
// token outside the table gives NaN.

// [rows, units, UNIT_WORDS]
@group(0) @binding(0) var<storage, read> weights: array<u32>;
// [rows, groups]
@group(0) @binding(1) var<storage, read> scales: array<f32>;
// [rows, groups], one byte each
@group(0) @binding(2) var<storage, read> zeros: array<u32>;
// [tokens]
@group(0) @binding(3) var<storage, read> tokens: array<u32>;
// [tokens, cols]
@group(0) @binding(4) var<storage, read_write> out: array<f32>;
@group(0) @binding(5) var<uniform> p: Params;

struct Params {
    // The number of rows in this buffer, and the table row of the first one.
    rows: u32,
    first_row: u32,
    // The number of rows of the whole table.
    table_rows: u32,
    cols: u32,
    units: u32,
    units_per_group: u32,
    groups: u32,
    group_size: u32,
    zero_point: u32,
    tokens: u32,
    // The bits of a NaN, because WGSL has no NaN literal.
    nan_bits: u32,
    padding: u32,
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let t = flat(workgroup, workgroups);
    if t >= p.tokens {
        return;
    }
    let token = tokens[t];
    if token >= p.table_rows {
        if p.first_row == 0u {
            for (var column = lane; column < p.cols; column += 64u) {
                out[t * p.cols + column] = bitcast<f32>(p.nan_bits);
            }
        }
        return;
    }
    if token < p.first_row || token - p.first_row >= p.rows {
        return;
    }
    let row = token - p.first_row;
    for (var unit = lane; unit < p.units; unit += 64u) {
        let at = span(unit);
        let group = affine(row, at.group);
        for (var quad = 0u; quad < UNIT_QUADS; quad++) {
            let values = (unit_quad((row * p.units + unit) * UNIT_WORDS, quad) - group.zero) * group.scale;
            for (var i = 0u; i < 4u; i++) {
                let column = at.start + 4u * quad + i;
                if column < at.end {
                    out[t * p.cols + column] = values[i];
                }
            }
        }
    }
}
