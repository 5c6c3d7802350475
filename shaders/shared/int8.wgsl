// Dot products of codes and INT8 activations, four columns at a time.

// Whether a row has one scale: then its integers are added up exactly, and scaled once.
override ONE_GROUP: bool = false;

// The activations of quad `quad` of a row of units.
fn x_quad(token: u32, quad: u32) -> vec4<i32> {
    let word = rounded_x[token * p.units * UNIT_QUADS + quad];
    return bitcast<vec4<i32>>(vec4(word << 24u, word << 16u, word << 8u, word)) >> vec4(24u);
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
