// Rounding a token's activations to INT8, as the CPU does: q = round(x * factor), halves to even, with
// factor = 127 / max(absmax(x), 1e-5).

const QUANTIZE_LANES: u32 = 64u;

var<workgroup> largest: array<f32, 64>;
var<workgroup> broken: array<u32, 64>;

struct Token {
    factor: f32,
    // Whether a value is NaN or infinite.
    broken: bool,
}

// Looks at x[first .. first + p.cols] together with the other invocations of the workgroup.
fn measure(first: u32, lane: u32) -> Token {
    var most = 0.0;
    var any_broken = 0u;
    for (var i = lane; i < p.cols; i += QUANTIZE_LANES) {
        let bits = bitcast<u32>(x[first + i]) & 0x7fffffffu;
        if bits >= 0x7f800000u {
            any_broken = 1u;
        } else {
            most = max(most, bitcast<f32>(bits));
        }
    }
    largest[lane] = most;
    broken[lane] = any_broken;
    for (var step = QUANTIZE_LANES / 2u; step > 0u; step /= 2u) {
        workgroupBarrier();
        if lane < step {
            largest[lane] = max(largest[lane], largest[lane + step]);
            broken[lane] |= broken[lane + step];
        }
    }
    workgroupBarrier();
    return Token(127.0 / max(largest[0], 1e-5), broken[0] != 0u);
}

fn rounded(value: f32, factor: f32) -> f32 {
    return round(clamp(value * factor, -128.0, 127.0));
}
