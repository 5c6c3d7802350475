// Parameters of a linear layer, or of some of its rows.
struct Params {
    rows: u32,
    cols: u32,
    // Units per row, and per group except the last.
    units: u32,
    units_per_group: u32,
    // Groups per row, and columns per group.
    groups: u32,
    group_size: u32,
    // The zero point if groups have no zero points of their own.
    zero_point: u32,
    tokens: u32,
    // The number of columns of y, and the column of row 0.
    y_stride: u32,
    y_start: u32,
    has_bias: u32,
    padding: u32,
}
