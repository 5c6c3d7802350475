// The layout of weights, for every format.
//
// A row is a sequence of units. A unit holds the values of consecutive columns: four words of f32, two words of f16 or
// bf16, or one word of codes (4 of 8 bits, 8 of 4 bits, 16 of 2 bits). Every group of columns that share a scale begins
// at a unit. The values of a unit beyond the end of its group are 0, and so are the activations that they are
// multiplied with. Byte b of a word of codes holds the columns b, b + 4, b + 8, ..., the first in its lowest bits, so a
// shift and a mask extract four consecutive columns.

const F32: u32 = 0u;
const F16: u32 = 1u;
const BF16: u32 = 2u;
const CODES: u32 = 3u;

// The storage format of values.
override FORMAT: u32 = F32;
// Bits per value: 32 or 16, or 8, 4 or 2 for codes.
override BITS: u32 = 32u;
// Whether each group has its own zero point.
override HAS_ZEROS: bool = false;

override UNIT_WORDS: u32 = max(BITS / 8u, 1u);
override UNIT_QUADS: u32 = max(8u / BITS, 1u);

// The affine parameters of a unit: value = (quad - zero) * scale.
struct Affine {
    scale: f32,
    zero: f32,
}

fn code_quad(word: u32, quad: u32) -> vec4<u32> {
    let shifts = vec4(0u, 8u, 16u, 24u) + BITS * quad;
    return (vec4(word) >> shifts) & vec4(0xffffffffu >> (32u - BITS));
}

// The columns of a unit.
struct Span {
    group: u32,
    // Its first column.
    start: u32,
    // The end of the group's columns, exclusive.
    end: u32,
}

fn span(unit: u32) -> Span {
    let group = unit / p.units_per_group;
    let start = group * p.group_size;
    let inside = (unit - group * p.units_per_group) * UNIT_QUADS * 4u;
    return Span(group, start + inside, min(start + p.group_size, p.cols));
}
