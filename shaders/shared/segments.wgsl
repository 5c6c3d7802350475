// The rows of a batch that belong to one sequence, in order.
struct Segment {
    // The segment's first row, and its first tile of rows.
    row: u32,
    tile: u32,
    // The number of rows.
    count: u32,
    // The number of positions of the sequence before these rows.
    past: u32,
    // The index of the sequence's first position in the cache.
    start: u32,
    // Whether attention is not causal: rows see later rows of their segment.
    full: u32,
}

// The segment that contains a row (or a tile, if `first_of` returns tiles): the last segment that starts at or before
// it.
fn segment_of(item: u32) -> Segment {
    var low = 0u;
    var high = p.segments;
    while high - low > 1u {
        let middle = (low + high) / 2u;
        if first_of(middle) <= item {
            low = middle;
        } else {
            high = middle;
        }
    }
    return segments[low];
}
