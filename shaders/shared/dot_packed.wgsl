// Dot products of four codes and four INT8 activations, each packed as four bytes of a word, for devices with packed
// dot products. Gives the same integers as dot_plain. 8-bit codes must have the zero point 128, so that the difference
// fits in a byte.

alias Quad = u32;

const SIGNS: u32 = 0x80808080u;
const EACH_BYTE: u32 = 0x01010101u;

// Codes 4 * quad .. 4 * quad + 4 of a word, minus their zero point.
fn w_quad(word: u32, quad: u32, zero: u32) -> Quad {
    if BITS == 8u {
        return word ^ SIGNS;
    }
    let codes = (word >> (BITS * quad)) & ((0xffu >> (8u - min(BITS, 8u))) * EACH_BYTE);
    // The highest bit of each byte is set, so that no byte borrows from the next one. The XOR then leaves the
    // difference.
    return ((codes | SIGNS) - zero * EACH_BYTE) ^ SIGNS;
}

fn x_quad(word: u32) -> Quad {
    return word;
}

fn quad_dot(w: Quad, x: Quad) -> i32 {
    return dot4I8Packed(w, x);
}
