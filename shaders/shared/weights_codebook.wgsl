// Decodes codes of a codebook: value = BOOK[code] * scale, with the BOOK of IQ4_NL. The CPU counterpart is
// `quant/codings/codebook.rs`.

// Sixteen signed bytes, the first in the lowest bits.
const BOOK = vec4<u32>(0xbfad9881u, 0xf6eaddcfu, 0x26190d01u, 0x71594535u);

fn book(code: u32) -> f32 {
    let word = BOOK[code / 4u];
    return f32(bitcast<i32>(word << (24u - code % 4u * 8u)) >> 24u);
}

// Columns 4 * quad .. 4 * quad + 4 of a unit, without the scale.
fn unit_quad(first_word: u32, quad: u32) -> vec4<f32> {
    let codes = code_quad(weights[first_word], quad);
    return vec4(book(codes.x), book(codes.y), book(codes.z), book(codes.w));
}

fn affine(row: u32, group: u32) -> Affine {
    return Affine(scales[row * p.groups + group], 0.0);
}
