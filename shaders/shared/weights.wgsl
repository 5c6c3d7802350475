// Weights of every format, four values at a time.
//
// A row is a run of units, each the values of some consecutive columns: four words of f32, two words of f16 or bf16, or
// one word of codes (4 of 8 bits, 8 of 4 bits, 16 of 2 bits). Every group of columns that share a scale begins at a
// unit; what a unit has beyond its group's end is 0 and meets activations of 0.
// Byte b of a word of codes holds the columns b, b + 4, b + 8, ..., the first in its lowest bits, so that a shift and a
// mask give four consecutive columns.

const F32: u32 = 0u;
const F16: u32 = 1u;
const BF16: u32 = 2u;
const CODES: u32 = 3u;

// How values are written.
override FORMAT: u32 = F32;
// Bits of a value: 32, 16, or 8, 4, 2 of codes.
override BITS: u32 = 32u;
// Whether each group has a zero point of its own.
override HAS_ZEROS: bool = false;

override UNIT_WORDS: u32 = max(BITS / 8u, 1u);
override UNIT_QUADS: u32 = max(8u / BITS, 1u);

// What a unit's values have in common: value = (quad - zero) * scale.
struct Affine {
    scale: f32,
    zero: f32,
}

fn code_quad(word: u32, quad: u32) -> vec4<u32> {
    let shifts = vec4(0u, 8u, 16u, 24u) + BITS * quad;
    return (vec4(word) >> shifts) & vec4(0xffffffffu >> (32u - BITS));
}

// Where a unit's columns are.
struct Span {
    group: u32,
    // Its first column.
    start: u32,
    // One after the last column of its group.
    end: u32,
}

fn span(unit: u32) -> Span {
    let group = unit / p.units_per_group;
    let start = group * p.group_size;
    let inside = (unit - group * p.units_per_group) * UNIT_QUADS * 4u;
    return Span(group, start + inside, min(start + p.group_size, p.cols));
}
