// Dot products of four codes and four INT8 activations as 32-bit integers, for every device.

alias Quad = vec4<i32>;

// Codes 4 * quad .. 4 * quad + 4 of a word, minus their zero point.
fn w_quad(word: u32, quad: u32, zero: u32) -> Quad {
    return vec4<i32>(code_quad(word, quad)) - i32(zero);
}

// The four signed bytes of a word.
fn x_quad(word: u32) -> Quad {
    return bitcast<vec4<i32>>(vec4(word << 24u, word << 16u, word << 8u, word)) >> vec4(24u);
}

fn quad_dot(w: Quad, x: Quad) -> i32 {
    return dot(w, x);
}
