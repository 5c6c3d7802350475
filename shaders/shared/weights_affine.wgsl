// Decodes dense values, and integer codes with a scale and a zero point. shared/weights.wgsl describes the layout.

// Columns 4 * quad .. 4 * quad + 4 of a unit: dense values, or codes before the zero point and the scale.
fn unit_quad(first_word: u32, quad: u32) -> vec4<f32> {
    if FORMAT == F32 {
        return vec4(
            bitcast<f32>(weights[first_word]),
            bitcast<f32>(weights[first_word + 1u]),
            bitcast<f32>(weights[first_word + 2u]),
            bitcast<f32>(weights[first_word + 3u]),
        );
    }
    if FORMAT == F16 {
        return vec4(unpack2x16float(weights[first_word]), unpack2x16float(weights[first_word + 1u]));
    }
    if FORMAT == BF16 {
        let low = weights[first_word];
        let high = weights[first_word + 1u];
        return bitcast<vec4<f32>>(vec4(low << 16u, low & 0xffff0000u, high << 16u, high & 0xffff0000u));
    }
    return vec4<f32>(code_quad(weights[first_word], quad));
}

// The zero point of group `index`, which is row * groups + group.
fn zero_point(index: u32) -> u32 {
    if HAS_ZEROS {
        return (zeros[index / 4u] >> (index % 4u * 8u)) & 255u;
    }
    return p.zero_point;
}

fn affine(row: u32, group: u32) -> Affine {
    if FORMAT != CODES {
        return Affine(1.0, 0.0);
    }
    let index = row * p.groups + group;
    return Affine(scales[index], f32(zero_point(index)));
}
