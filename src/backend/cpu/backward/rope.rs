//! Backward step of rotary embedding and head norms: rotates by the opposite angles, then differentiates the norm.

use super::rms_norm::rms_norm;
use crate::backend::cpu::parallel::Workers;
use crate::backend::{AttentionShape, Segment};

/// Norms of the heads of q and k: weight, epsilon, and the derivative of the weight.
pub(super) struct HeadNorms<'a> {
    /// `[rows, qkv width]`, before norms and rotation
    pub(super) qkv: &'a [f32],
    pub(super) q: (&'a [f32], f32, &'a mut [f32]),
    pub(super) k: (&'a [f32], f32, &'a mut [f32]),
}

/// `dx` is `[rows, qkv width]`. Derivatives by q and k after rotation are replaced by those before norms and rotation.
pub(super) fn rope(
    workers: &Workers,
    dx: &mut [f32],
    segments: &[Segment],
    shape: &AttentionShape,
    rope: &[f32],
    norms: Option<HeadNorms<'_>>,
) {
    let AttentionShape { heads, kv_heads, head_dim, .. } = *shape;
    let width = shape.qkv_width();
    let positions: Vec<usize> = segments.iter().flat_map(|segment| segment.past..segment.end()).collect();
    let work = dx.len() * 4;
    workers.run_chunks(dx, width, work, |row, dx| {
        let angles = &rope[positions[row] * head_dim..][..head_dim];
        dx.chunks_exact_mut(head_dim).take(heads + kv_heads).for_each(|dx| turn_back(dx, angles));
    });
    let Some(HeadNorms { qkv, q, k }) = norms else { return };
    for (first, count, (weight, epsilon, dweight)) in [(0, heads, q), (heads, kv_heads, k)] {
        let span = first * head_dim..(first + count) * head_dim;
        let take = |rows: &[f32]| -> Vec<f32> {
            rows.chunks_exact(width).flat_map(|row| &row[span.clone()]).copied().collect()
        };
        let (x, dy) = (take(qkv), take(dx));
        let mut before = vec![0.0; x.len()];
        rms_norm(workers, &x, &dy, weight, epsilon, &mut before, dweight);
        for (dx, before) in dx.chunks_exact_mut(width).zip(before.chunks_exact(span.len())) {
            dx[span.clone()].copy_from_slice(before);
        }
    }
}

/// Rotates each pair `(head[i], head[i + half])` by the opposite of its angle.
fn turn_back(head: &mut [f32], angles: &[f32]) {
    let half = head.len() / 2;
    let (low, high) = head.split_at_mut(half);
    let (cos, sin) = angles.split_at(half);
    for i in 0..half {
        let (a, b) = (low[i], high[i]);
        low[i] = a * cos[i] + b * sin[i];
        high[i] = b * cos[i] - a * sin[i];
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, Checked, buffer, check};
    use crate::backend::{AttentionShape, BackwardStep, HeadNorms, Norm, QkNorm, Segment};

    #[test]
    fn derivatives_are_those_of_finite_differences() {
        let segments = [Segment::causal(0, 3), Segment { start: 5, ..Segment::causal(0, 2) }];
        let shape = AttentionShape { heads: 2, kv_heads: 1, head_dim: 6, capacity: 9 };
        let (rows, width, dim, epsilon) = (5, shape.qkv_width(), 6, 1e-3f32);
        let angles: Vec<f32> = (0..3 * dim / 2).map(|i| i as f32 * 0.3).collect();
        let rope: Vec<f32> = angles
            .chunks(dim / 2)
            .flat_map(|a| a.iter().map(|a| a.cos()).chain(a.iter().map(|a| a.sin())))
            .collect();
        for normed in [false, true] {
            // qkv, and the norms' weights; the loss sees q, k and v.
            let case = Case::new(&[rows * width, dim, dim], rows * width);
            check(
                case,
                |inputs| {
                    let mut out = inputs[0].clone();
                    for (row, out) in out.chunks_mut(width).enumerate() {
                        let position = if row < 3 { row } else { row - 3 };
                        for (head, out) in out.chunks_mut(dim).take(3).enumerate() {
                            let weight = &inputs[if head < 2 { 1 } else { 2 }];
                            if normed {
                                let mean = out.iter().map(|x| x * x).sum::<f64>() / dim as f64;
                                let factor = 1.0 / (mean + f64::from(epsilon)).sqrt();
                                out.iter_mut().zip(weight).for_each(|(x, g)| *x *= factor * g);
                            } else {
                                // Keeps every input in the loss in both cases.
                                out.iter_mut().zip(weight).for_each(|(x, g)| *x += 0.0 * g);
                            }
                            for i in 0..dim / 2 {
                                let (sin, cos) = (
                                    f64::from(rope[position * dim + dim / 2 + i]),
                                    f64::from(rope[position * dim + i]),
                                );
                                let (a, b) = (out[i], out[i + dim / 2]);
                                (out[i], out[i + dim / 2]) = (a * cos - b * sin, b * cos + a * sin);
                            }
                        }
                    }
                    out
                },
                |backend, inputs, dy, derivatives| {
                    let rope = buffer(backend, &rope);
                    let [dx, dq, dk] = derivatives else { unreachable!() };
                    // In place: `dx` begins as the derivative by the output.
                    crate::backend::Backend::write_f32(backend, dx, dy).unwrap();
                    let norm = |weight| Norm { weight, width: dim, epsilon };
                    let norms = QkNorm { q: norm(&inputs[1]), k: norm(&inputs[2]) };
                    let norms = normed.then_some(HeadNorms { qkv: &inputs[0], norms, dq, dk });
                    backend.backward_checked(BackwardStep::Rope {
                        dx,
                        segments: &segments,
                        shape,
                        rope: &rope,
                        norms,
                    });
                },
            );
        }
    }
}
