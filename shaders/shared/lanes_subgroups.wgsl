// Adding up what LANES neighbouring invocations have, in the order of lanes_barriers, so that sums are the same to the last bit:
// through shared memory only as long as a sum's halves may lie in two subgroups.

// Invocations, a power of two, that lie in one subgroup whatever its size is. They are taken to stand there in the order of their
// indices; a device on which they do not fails the self-check.
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
