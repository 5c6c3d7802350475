// Some rows of a matrix that meet some tokens.
struct Params {
    rows: u32,
    cols: u32,
    // Units of a row, and of every group but the last.
    units: u32,
    units_per_group: u32,
    // Groups of a row, and columns of a group.
    groups: u32,
    group_size: u32,
    // Of every code where groups have none of their own.
    zero_point: u32,
    tokens: u32,
    // Columns of y, and the one of row 0.
    y_stride: u32,
    y_start: u32,
    has_bias: u32,
    padding: u32,
}
