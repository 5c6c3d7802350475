// Maps floats to integers of the same order.

// The key of NaN and plus infinity, above every other key.
const BROKEN_KEY: u32 = 0xffffffffu;

// The key of minus infinity is 0. Negative and positive zero have equal keys.
fn ordered_key(value: f32) -> u32 {
    let bits = bitcast<u32>(value);
    if (bits & 0x7fffffffu) >= 0x7f800000u {
        return select(BROKEN_KEY, 0u, bits == 0xff800000u);
    }
    if (bits & 0x7fffffffu) == 0u {
        return 0x80000000u;
    }
    return select(bits | 0x80000000u, ~bits, bits >= 0x80000000u);
}
