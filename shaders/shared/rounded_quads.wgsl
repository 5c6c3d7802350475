// Packs INT8 activations four to a word, in the order of the units of weights.

// The columns of a word, at most four.
struct QuadSpan {
    start: u32,
    // The end of the columns, exclusive. The remaining bytes of the word are 0.
    end: u32,
}

fn quad_span(quad: u32) -> QuadSpan {
    let unit = quad / p.unit_quads;
    let group = unit / p.units_per_group;
    let first = group * p.group_size;
    let group_end = min(first + p.group_size, p.cols);
    let start = first + ((unit - group * p.units_per_group) * p.unit_quads + quad % p.unit_quads) * 4u;
    return QuadSpan(start, min(start + 4u, group_end));
}

fn byte_of(value: f32, token: Token) -> u32 {
    return bitcast<u32>(i32(rounded(value, token))) & 255u;
}

// The divisor of the integers, or NaN for a token with a NaN or an infinity.
fn factor_of(token: Token) -> f32 {
    return select(token.factor, bitcast<f32>(p.nan_bits), token.broken);
}
