// Sums over LANES neighboring invocations with subgroup operations. The order of additions is that of lanes_barriers,
// so sums are equal to the last bit. Shared memory is used only for the steps whose operands may lie in two subgroups.

// The number of invocations, a power of two, that are in one subgroup whatever the subgroup size. Subgroup lanes are
// assumed to be in the order of the invocation indices. A device that orders them differently fails the self-check.
override SUBGROUP: u32 = 4u;

var<workgroup> lane_floats: array<vec4<f32>, 64>;
var<workgroup> lane_integers: array<vec4<i32>, 64>;
var<workgroup> lane_numbers: array<f32, 256>;

fn add_floats(own: vec4<f32>, index: u32) -> vec4<f32> {
    let lane = index % LANES;
    var sum = own;
    if LANES > SUBGROUP {
        lane_floats[index] = sum;
        for (var step = LANES / 2u; step >= SUBGROUP; step /= 2u) {
            workgroupBarrier();
            if lane < step {
                sum += lane_floats[index + step];
                lane_floats[index] = sum;
            }
        }
    }
    for (var step = min(LANES, SUBGROUP) / 2u; step > 0u; step /= 2u) {
        sum += subgroupShuffleXor(sum, step);
    }
    return sum;
}

fn add_integers(own: vec4<i32>, index: u32) -> vec4<i32> {
    let lane = index % LANES;
    var sum = own;
    if LANES > SUBGROUP {
        lane_integers[index] = sum;
        for (var step = LANES / 2u; step >= SUBGROUP; step /= 2u) {
            workgroupBarrier();
            if lane < step {
                sum += lane_integers[index + step];
                lane_integers[index] = sum;
            }
        }
    }
    for (var step = min(LANES, SUBGROUP) / 2u; step > 0u; step /= 2u) {
        sum += subgroupShuffleXor(sum, step);
    }
    return sum;
}

fn total_of(own: f32, index: u32) -> f32 {
    let lane = index % LANES;
    var sum = own;
    if LANES > SUBGROUP {
        lane_numbers[index] = sum;
        for (var step = LANES / 2u; step >= SUBGROUP; step /= 2u) {
            workgroupBarrier();
            if lane < step {
                sum += lane_numbers[index + step];
                lane_numbers[index] = sum;
            }
        }
    }
    for (var step = min(LANES, SUBGROUP) / 2u; step > 0u; step /= 2u) {
        sum += subgroupShuffleXor(sum, step);
    }
    if lane == 0u {
        lane_numbers[index] = sum;
    }
    workgroupBarrier();
    return lane_numbers[index - lane];
}
