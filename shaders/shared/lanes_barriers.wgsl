// Sums over LANES neighboring invocations, as a tree in shared memory, for every device. All invocations of a workgroup
// must call these functions together. A workgroup has 64 invocations, for `total_of` up to 256.

var<workgroup> lane_floats: array<vec4<f32>, 64>;
var<workgroup> lane_integers: array<vec4<i32>, 64>;
var<workgroup> lane_numbers: array<f32, 256>;

// Returns the sum to the first of the LANES neighbors.
fn add_floats(own: vec4<f32>, index: u32) -> vec4<f32> {
    let lane = index % LANES;
    lane_floats[index] = own;
    for (var step = LANES / 2u; step > 0u; step /= 2u) {
        workgroupBarrier();
        if lane < step {
            lane_floats[index] += lane_floats[index + step];
        }
    }
    return lane_floats[index];
}

// Like add_floats.
fn add_integers(own: vec4<i32>, index: u32) -> vec4<i32> {
    let lane = index % LANES;
    lane_integers[index] = own;
    for (var step = LANES / 2u; step > 0u; step /= 2u) {
        workgroupBarrier();
        if lane < step {
            lane_integers[index] += lane_integers[index + step];
        }
    }
    return lane_integers[index];
}

// Returns the sum to each of the LANES neighbors.
fn total_of(own: f32, index: u32) -> f32 {
    let lane = index % LANES;
    lane_numbers[index] = own;
    for (var step = LANES / 2u; step > 0u; step /= 2u) {
        workgroupBarrier();
        if lane < step {
            lane_numbers[index] += lane_numbers[index + step];
        }
    }
    workgroupBarrier();
    return lane_numbers[index - lane];
}
