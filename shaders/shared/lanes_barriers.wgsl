// Adding up what LANES neighbouring invocations have, in a tree, through shared memory: for every device. All invocations of a
// workgroup call these together: 64 of them, and up to 256 the last.

var<workgroup> lane_floats: array<vec4<f32>, 64>;
var<workgroup> lane_integers: array<vec4<i32>, 64>;
var<workgroup> lane_numbers: array<f32, 256>;

// The sum for the first of the neighbours.
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

// As add_floats.
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

// The sum for each of the neighbours.
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
