// Sums of products of codes and INT8 activations, and what becomes of them.

// Whether a row has one scale: then its integers are added up exactly, and scaled once.
override ONE_GROUP: bool = false;

// Four rounded activations, one in each byte.
fn x_word(token: u32, quad: u32) -> u32 {
    return rounded_x[token * p.units * UNIT_QUADS + quad];
}

// A sum over a row as `integers` where it has one scale, else as `floats`; activations were multiplied with `factor`.
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
