// Loads INT8 activations, and scales the sums of their products with codes.

// Whether each row has a single scale. Products are then summed exactly, as integers, and scaled once.
override ONE_GROUP: bool = false;

// Four INT8 activations, one in each byte.
fn x_word(token: u32, quad: u32) -> u32 {
    return rounded_x[token * p.units * UNIT_QUADS + quad];
}

// The scaled sum of a row plus its bias. The sum is `integers` with ONE_GROUP, otherwise `floats`, which group scales
// have already multiplied. `factor` is the token's quantization factor.
fn scaled(row: u32, integers: i32, floats: f32, factor: f32) -> f32 {
    var value = floats / factor;
    if ONE_GROUP {
        value = f32(integers) / factor * scales[row];
    }
    if p.has_bias != 0u {
        value += bias[row];
    }
    return value;
}
