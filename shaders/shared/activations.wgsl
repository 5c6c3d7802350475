// Loads activations to multiply with units of weights, four columns at a time.

// Whether a unit can extend beyond its group, or a row can begin inside a quad.
override RAGGED: bool = true;

// x[token, column .. column + 4], with zeros at and after column `end`.
fn x_quad(token: u32, column: u32, end: u32) -> vec4<f32> {
    let first = token * p.cols + column;
    if !RAGGED {
        return x[first / 4u];
    }
    var quad = vec4(0.0);
    for (var i = 0u; i < 4u; i++) {
        if column + i < end {
            quad[i] = x[(first + i) / 4u][(first + i) % 4u];
        }
    }
    return quad;
}
