// out[i, j] += sum over tokens of x[t, first + i] * x[t, j]: some rows of X^T X, the basis of GPTQ's Hessian. Also
// fills the elements below the diagonal, which the CPU leaves out.
//
// A workgroup computes a tile of 32 x 32 elements, 32 tokens at a time. Each invocation computes 4 x 4 elements.

// [tokens, cols]
@group(0) @binding(0) var<storage, read> x: array<f32>;
// [rows, cols]
@group(0) @binding(1) var<storage, read_write> out: array<f32>;
@group(0) @binding(2) var<uniform> p: Params;

struct Params {
    tokens: u32,
    cols: u32,
    // The column of x that is row 0 of out, and the number of rows.
    first: u32,
    rows: u32,
}

const TILE: u32 = 32u;

// [token, TILE]
var<workgroup> row_tile: array<f32, 1024>;
// [token, TILE]
var<workgroup> column_tile: array<f32, 1024>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let first_row = workgroup.z * TILE;
    let first_column = flat(workgroup, workgroups) * TILE;
    // The first row and column of this invocation. It computes every eighth row and column from there.
    let my_column = index % 8u;
    let my_row = index / 8u;
    // [row] of vectors over columns
    var sums = array<vec4<f32>, 4>();
    for (var first_token = 0u; first_token < p.tokens; first_token += TILE) {
        for (var i = index; i < TILE * TILE; i += 64u) {
            let token = first_token + i / TILE;
            let row = first_row + i % TILE;
            let column = first_column + i % TILE;
            row_tile[i] = element(token, p.first + row, row < p.rows);
            column_tile[i] = element(token, column, column < p.cols);
        }
        workgroupBarrier();
        for (var t = 0u; t < TILE; t++) {
            var columns = vec4(0.0);
            for (var c = 0u; c < 4u; c++) {
                columns[c] = column_tile[t * TILE + my_column + 8u * c];
            }
            for (var r = 0u; r < 4u; r++) {
                sums[r] += row_tile[t * TILE + my_row + 8u * r] * columns;
            }
        }
        workgroupBarrier();
    }
    for (var r = 0u; r < 4u; r++) {
        let row = first_row + my_row + 8u * r;
        for (var c = 0u; c < 4u; c++) {
            let column = first_column + my_column + 8u * c;
            if row < p.rows && column < p.cols {
                out[row * p.cols + column] += sums[r][c];
            }
        }
    }
}

fn element(token: u32, column: u32, inside: bool) -> f32 {
    if inside && token < p.tokens {
        return x[token * p.cols + column];
    }
    return 0.0;
}
