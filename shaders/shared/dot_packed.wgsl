// Products of four codes and four INT8 activations, each four in the bytes of a word: for devices that multiply them so.
// The integers are those of dot_plain. Codes of 8 bits need the zero point 128, so that the difference fits a byte.

alias Quad = u32;

const SIGNS: u32 = 0x80808080u;
const EACH_BYTE: u32 = 0x01010101u;

// Codes 4 * quad .. 4 * quad + 4 of a word, less their zero point.
fn w_quad(word: u32, quad: u32, zero: u32) -> Quad {
    if BITS == 8u {
        return word ^ SIGNS;
    }
    let codes = (word >> (BITS * quad)) & ((0xffu >> (8u - min(BITS, 8u))) * EACH_BYTE);
    // With its highest bit set no byte borrows from the next one; taking it out again leaves the difference.
    return ((codes | SIGNS) - zero * EACH_BYTE) ^ SIGNS;
}

fn x_quad(word: u32) -> Quad {
    return word;
}

fn quad_dot(w: Quad, x: Quad) -> i32 {
    return dot4I8Packed(w, x);
}
