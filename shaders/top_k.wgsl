// The k largest values of each row of x and all values equal to the k-th largest, in no particular order. One workgroup
// per row.
//
// A radix select (Knuth, TAOCP 3, 5.2.2): floats are mapped to integers of the same order, and four histograms of eight
// bits each find the k-th largest. The histogram needs the same memory for every k. `found` is the number of results.
// The caller must read the whole row if `found` exceeds `capacity`. `found` is NONE, also above every capacity, if a
// value is NaN or plus infinity.

// [rows, width]
@group(0) @binding(0) var<storage, read> x: array<f32>;
// [rows, capacity]
@group(0) @binding(1) var<storage, read_write> ids: array<u32>;
// [rows, capacity]
@group(0) @binding(2) var<storage, read_write> values: array<f32>;
// [rows]
@group(0) @binding(3) var<storage, read_write> found: array<u32>;
@group(0) @binding(4) var<uniform> p: Params;

struct Params {
    rows: u32,
    width: u32,
    // At least 1, at most width.
    k: u32,
    capacity: u32,
}

const LANES: u32 = 256u;
const NONE: u32 = 0xffffffffu;

var<workgroup> histogram: array<atomic<u32>, 256>;
// The known leading bits of the k-th largest key.
var<workgroup> prefix: u32;
// The number of values still to select among the keys with this prefix.
var<workgroup> rest: u32;
var<workgroup> count: atomic<u32>;
var<workgroup> broken: atomic<u32>;

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
    if lane == 0u {
        prefix = 0u;
        rest = p.k;
        atomicStore(&count, 0u);
        atomicStore(&broken, 0u);
    }
    for (var digit = 0u; digit < 4u; digit++) {
        let shift = 24u - 8u * digit;
        atomicStore(&histogram[lane], 0u);
        workgroupBarrier();
        let known = prefix;
        for (var i = lane; i < p.width; i += LANES) {
            let key = ordered_key(x[first + i]);
            if key == BROKEN_KEY {
                atomicStore(&broken, 1u);
            }
            // The key must match the known digits. The first digit has none above it.
            if digit == 0u || (key >> (shift + 8u)) == (known >> (shift + 8u)) {
                atomicAdd(&histogram[(key >> shift) & 255u], 1u);
            }
        }
        workgroupBarrier();
        if lane == 0u {
            var above = 0u;
            var bin = 255u;
            while bin > 0u && above + atomicLoad(&histogram[bin]) < rest {
                above += atomicLoad(&histogram[bin]);
                bin--;
            }
            rest -= above;
            prefix = known | (bin << shift);
        }
        workgroupBarrier();
    }
    let threshold = prefix;
    for (var i = lane; i < p.width; i += LANES) {
        let value = x[first + i];
        if ordered_key(value) >= threshold {
            let at = atomicAdd(&count, 1u);
            if at < p.capacity {
                ids[row * p.capacity + at] = i;
                values[row * p.capacity + at] = value;
            }
        }
    }
    workgroupBarrier();
    if lane == 0u {
        found[row] = select(atomicLoad(&count), NONE, atomicLoad(&broken) != 0u);
    }
}
