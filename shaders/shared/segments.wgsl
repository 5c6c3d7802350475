// The rows of a batch that follow each other in one sequence.
struct Segment {
    // The first of its rows, and of its tiles of rows.
    row: u32,
    tile: u32,
    // Rows.
    count: u32,
    // Positions that the sequence has before them.
    past: u32,
    // The place of the sequence's first position in the cache.
    start: u32,
    // Whether rows see the later ones of their segment.
    full: u32,
}

// The segment of a row, or of a tile where `first_of` gives tiles: the last one that does not begin after it.
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
