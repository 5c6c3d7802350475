// Quantizes a token's activations to INT8 on one of the CPU's two grids, rounding halves to even. q = round(x * 127 /
// max(absmax(x), 1e-5)), or with p.full_range q = round(x / step) with step = absmax(x) / 127.5.

const QUANTIZE_LANES: u32 = 256u;

var<workgroup> largest: array<f32, 256>;
var<workgroup> broken: array<u32, 256>;

struct Token {
    // The divisor of the integers.
    factor: f32,
    // With p.full_range: the reciprocal of `factor`, by which activations are divided.
    step: f32,
    // Whether any value is NaN or infinite.
    broken: bool,
}

// A summary of some of a token's values.
struct Seen {
    // The largest magnitude of the finite values.
    most: f32,
    // 1 if any value is NaN or infinite.
    broken: u32,
}

fn look(seen: Seen, value: f32) -> Seen {
    let bits = bitcast<u32>(value) & 0x7fffffffu;
    if bits >= 0x7f800000u {
        return Seen(seen.most, 1u);
    }
    return Seen(max(seen.most, bitcast<f32>(bits)), seen.broken);
}

// Combines the summaries of all invocations of the workgroup.
fn agree(seen: Seen, lane: u32) -> Token {
    largest[lane] = seen.most;
    broken[lane] = seen.broken;
    for (var step = QUANTIZE_LANES / 2u; step > 0u; step /= 2u) {
        workgroupBarrier();
        if lane < step {
            largest[lane] = max(largest[lane], largest[lane + step]);
            broken[lane] |= broken[lane + step];
        }
    }
    workgroupBarrier();
    if p.full_range != 0u {
        // A token of zeros has the grid's smallest step.
        let step = select(largest[0] / 127.5, 1.1920929e-7, largest[0] == 0.0);
        return Token(1.0 / step, step, broken[0] != 0u);
    }
    return Token(127.0 / max(largest[0], 1e-5), 0.0, broken[0] != 0u);
}

fn rounded(value: f32, token: Token) -> f32 {
    if p.full_range != 0u {
        return round(clamp(value / token.step, -128.0, 127.0));
    }
    return round(clamp(value * token.factor, -128.0, 127.0));
}

fn restored(q: f32, token: Token) -> f32 {
    if p.full_range != 0u {
        return q * token.step;
    }
    return q / token.factor;
}
