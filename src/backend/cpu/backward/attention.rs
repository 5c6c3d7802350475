//! Attention, backward. For a query `i` with probabilities `p = softmax(s)`, `s[j] = q . k[j] / sqrt(d)`:
//! `dp[j] = dy . v[j]`, `ds[j] = p[j] (dp[j] - sum p dp)`; then `dv[j] += p[j] dy`, `dq = sum ds[j] k[j] / sqrt(d)` and
//! `dk[j] += ds[j] q / sqrt(d)`. The probabilities are computed again. Floor 4.

use crate::backend::cpu::exp::exp;
use crate::backend::cpu::parallel::{Tiles, Workers};
use crate::backend::{AttentionShape, Segment};

/// `qkv` and `dx` are `[rows, qkv width]`, `dy` is `[rows, heads * head_dim]`; keys and values are those of the cache.
pub(super) fn attention(
    workers: &Workers,
    qkv: &[f32],
    segments: &[Segment],
    shape: &AttentionShape,
    (keys, values): (&[f32], &[f32]),
    dy: &[f32],
    dx: &mut [f32],
) {
    let width = shape.qkv_width();
    // The first row of each segment that has some.
    let mut row = 0;
    let mut begun = Vec::new();
    for segment in segments.iter().filter(|segment| segment.count > 0) {
        begun.push((row, *segment));
        row += segment.count;
    }
    let work =
        begun.iter().map(|(_, segment)| segment.count * segment.count * shape.heads * shape.head_dim * 4);
    let work = work.sum();
    let dx = Tiles::new(dx, width);
    workers.run(begun.len() * shape.kv_heads, work, |task| {
        let (first, segment) = begun[task / shape.kv_heads];
        let head = Head { shape, kv_head: task % shape.kv_heads, first, segment };
        head.run(qkv, keys, values, dy, &dx);
    });
}

/// A head of keys and values of one segment, with the queries that read it.
struct Head<'a> {
    shape: &'a AttentionShape,
    kv_head: usize,
    /// The segment's first row.
    first: usize,
    segment: Segment,
}

impl Head<'_> {
    fn run(&self, qkv: &[f32], keys: &[f32], values: &[f32], dy: &[f32], dx: &Tiles<'_>) {
        let AttentionShape { heads, kv_heads, head_dim: dim, capacity } = *self.shape;
        let Segment { count, start, .. } = self.segment;
        let (width, group) = (self.shape.qkv_width(), heads / kv_heads);
        let scale = 1.0 / (dim as f32).sqrt();
        let at = (self.kv_head * capacity + start) * dim;
        let (keys, values) = (&keys[at..at + count * dim], &values[at..at + count * dim]);
        let (mut dk, mut dv) = (vec![0.0f32; count * dim], vec![0.0f32; count * dim]);
        let (mut p, mut dp, mut dq) = (vec![0.0f32; count], vec![0.0f32; count], vec![0.0f32; dim]);
        for index in 0..count {
            let row = self.first + index;
            let seen = self.segment.seen(index);
            for head in self.kv_head * group..(self.kv_head + 1) * group {
                let q = &qkv[row * width + head * dim..][..dim];
                let dy = &dy[(row * heads + head) * dim..][..dim];
                let mut most = f32::NEG_INFINITY;
                for (p, key) in p[..seen].iter_mut().zip(keys.chunks_exact(dim)) {
                    *p = dot(q, key) * scale;
                    most = most.max(*p);
                }
                let mut sum = 0.0;
                for p in &mut p[..seen] {
                    *p = exp(*p - most);
                    sum += *p;
                }
                let mut mean = 0.0;
                for ((p, dp), value) in p[..seen].iter_mut().zip(&mut dp).zip(values.chunks_exact(dim)) {
                    *p /= sum;
                    *dp = dot(dy, value);
                    mean += *p * *dp;
                }
                dq.fill(0.0);
                for j in 0..seen {
                    let ds = p[j] * (dp[j] - mean) * scale;
                    let span = j * dim..(j + 1) * dim;
                    add_scaled(&mut dq, &keys[span.clone()], ds);
                    add_scaled(&mut dk[span.clone()], q, ds);
                    add_scaled(&mut dv[span], dy, p[j]);
                }
                // SAFETY: tasks differ in rows or in heads of keys, and with those in heads of queries.
                unsafe { dx.set_run(row, head * dim, &dq) };
            }
        }
        for index in 0..count {
            let span = index * dim..(index + 1) * dim;
            let (k, v) = ((heads + self.kv_head) * dim, (heads + kv_heads + self.kv_head) * dim);
            // SAFETY: as above.
            unsafe {
                dx.set_run(self.first + index, k, &dk[span.clone()]);
                dx.set_run(self.first + index, v, &dv[span]);
            }
        }
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add_scaled(sums: &mut [f32], values: &[f32], factor: f32) {
    for (sum, value) in sums.iter_mut().zip(values) {
        *sum += value * factor;
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, Checked, buffer, check};
    use crate::backend::{AttentionShape, Backend, BackwardStep, DeviceOps, Element, KvLayer, Mask, Segment};

    #[test]
    fn derivatives_are_those_of_finite_differences() {
        let at = |start, count, mask| Segment { count, past: 0, start, mask };
        let batches = [
            vec![at(0, 1, Mask::Causal)],
            vec![at(0, 5, Mask::Causal), at(5, 0, Mask::Full), at(5, 3, Mask::Full)],
        ];
        for (heads, kv_heads, head_dim) in [(1, 1, 2), (4, 2, 4)] {
            for segments in &batches {
                let rows: usize = segments.iter().map(|segment| segment.count).sum();
                let shape = AttentionShape { heads, kv_heads, head_dim, capacity: 9 };
                let width = shape.qkv_width();
                check(
                    Case::new(&[rows * width], rows * heads * head_dim),
                    |inputs| oracle(&inputs[0], segments, &shape),
                    |backend, inputs, dy, derivatives| {
                        // Angles of 0, so that rotation only fills the cache.
                        let rope: Vec<f32> =
                            (0..9).flat_map(|_| [1.0, 0.0].map(|v| vec![v; head_dim / 2]).concat()).collect();
                        let rope = buffer(backend, &rope);
                        let mut qkv = backend.buffer(Element::F32, rows * width).unwrap();
                        let mut x = vec![0.0; rows * width];
                        crate::task::block_on(backend.read(&inputs[0], 0, &mut x)).unwrap();
                        backend.write_f32(&mut qkv, &x).unwrap();
                        let mut cache = KvLayer {
                            keys: backend.buffer(Element::F32, shape.cache_len()).unwrap(),
                            values: backend.buffer(Element::F32, shape.cache_len()).unwrap(),
                        };
                        backend
                            .rope_and_append_kv(&mut qkv, segments, &shape, &rope, None, cache.as_mut())
                            .unwrap();
                        let dy = buffer(backend, dy);
                        let [dx] = derivatives else { unreachable!() };
                        let cache = cache.as_ref();
                        backend.backward_checked(BackwardStep::Attention {
                            qkv: &qkv,
                            segments,
                            shape,
                            cache,
                            dy: &dy,
                            dx,
                        });
                    },
                );
            }
        }
    }

    fn oracle(qkv: &[f64], segments: &[Segment], shape: &AttentionShape) -> Vec<f64> {
        let AttentionShape { heads, kv_heads, head_dim: dim, .. } = *shape;
        let width = shape.qkv_width();
        let mut out = Vec::new();
        let mut first = 0;
        for segment in segments {
            for index in 0..segment.count {
                for head in 0..heads {
                    let q = &qkv[(first + index) * width + head * dim..][..dim];
                    let part = |j: usize, offset: usize| {
                        &qkv[(first + j) * width + (offset + head / (heads / kv_heads)) * dim..][..dim]
                    };
                    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
                    let scores: Vec<f64> = (0..segment.seen(index))
                        .map(|j| (dot(q, part(j, heads)) / (dim as f64).sqrt()).exp())
                        .collect();
                    let sum: f64 = scores.iter().sum();
                    out.extend((0..dim).map(|i| {
                        let values = scores.iter().enumerate();
                        values.map(|(j, p)| p / sum * part(j, heads + kv_heads)[i]).sum::<f64>()
                    }));
                }
            }
            first += segment.count;
        }
        out
    }
}
