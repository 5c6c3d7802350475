//! Backward step of attention. A query has scores `s[j] = q . k[j] / sqrt(d)` and probabilities `p = softmax(s)`:
//! 1. `dp[j] = dy . v[j]` and `ds[j] = p[j] (dp[j] - sum p dp) / sqrt(d)`
//! 2. `dv[j] += p[j] dy`, `dq = sum ds[j] k[j]` and `dk[j] += ds[j] q`
//!
//! The probabilities are recomputed. Queries are processed in blocks, so that everything but the softmax is a matrix
//! product.

use crate::backend::cpu::exp::exp;
use crate::backend::cpu::parallel::{Tiles, Workers};
use crate::backend::{AttentionShape, Segment};
use crate::quant::linalg::{Matrix, add_product};
use multiversion::multiversion;

/// Queries per block: enough to amortize packing the keys, few enough to skip most keys that are masked for all of
/// them.
const QUERIES: usize = 64;
/// Accumulators of a sum.
const LANES: usize = 16;

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
    // Each segment that has rows, with its first row.
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

/// One KV head of one segment, with the queries that read it.
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
        let (mut dk, mut dv) = (vec![0.0; count * dim], vec![0.0; count * dim]);
        let most = QUERIES.min(count);
        let (mut p, mut dp, mut dq) =
            (vec![0.0; most * count], vec![0.0; most * count], vec![0.0; most * dim]);
        for begin in (0..count).step_by(QUERIES) {
            let queries = QUERIES.min(count - begin);
            // The last query attends to the most positions.
            let seen = self.segment.seen(begin + queries - 1);
            let row = self.first + begin;
            let keys = Matrix::new(keys, seen, dim, dim);
            let values = Matrix::new(values, seen, dim, dim);
            let (p, dp) = (&mut p[..queries * seen], &mut dp[..queries * seen]);
            let dq = &mut dq[..queries * dim];
            for head in self.kv_head * group..(self.kv_head + 1) * group {
                let q = Matrix::new(&qkv[row * width + head * dim..], queries, dim, width);
                let dy = Matrix::new(&dy[(row * heads + head) * dim..], queries, dim, heads * dim);
                product(q, keys.transposed(), p, seen);
                product(dy, values.transposed(), dp, seen);
                for (query, (p, dp)) in p.chunks_exact_mut(seen).zip(dp.chunks_exact_mut(seen)).enumerate() {
                    let end = self.segment.seen(begin + query);
                    p[end..].fill(0.0);
                    dp[end..].fill(0.0);
                    through_softmax(&mut p[..end], &mut dp[..end], scale);
                }
                let (p, ds) = (Matrix::new(p, queries, seen, seen), Matrix::new(dp, queries, seen, seen));
                product(ds, keys, dq, dim);
                add_product(1.0, ds.transposed(), q, &mut dk, dim);
                add_product(1.0, p.transposed(), dy, &mut dv, dim);
                for (query, dq) in dq.chunks_exact(dim).enumerate() {
                    // SAFETY: tasks differ in rows or in KV heads, and different KV heads have different query heads.
                    unsafe { dx.set_run(row + query, head * dim, dq) };
                }
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

/// `c = a b`
fn product(a: Matrix<'_>, b: Matrix<'_>, c: &mut [f32], stride: usize) {
    c.fill(0.0);
    add_product(1.0, a, b, c, stride);
}

/// In place: turns products with keys (`p`) into probabilities, and derivatives by probabilities (`dp`) into
/// derivatives by products.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn through_softmax(p: &mut [f32], dp: &mut [f32], scale: f32) {
    let mut most = [f32::NEG_INFINITY; LANES];
    for chunk in p.chunks(LANES) {
        for (most, &p) in most.iter_mut().zip(chunk) {
            *most = if p > *most { p } else { *most };
        }
    }
    let most = most.into_iter().fold(f32::NEG_INFINITY, f32::max);
    for p in p.iter_mut() {
        *p = exp((*p - most) * scale);
    }
    let (mut sums, mut along) = ([0.0f32; LANES], [0.0f32; LANES]);
    for (p, dp) in p.chunks(LANES).zip(dp.chunks(LANES)) {
        for lane in 0..p.len() {
            sums[lane] += p[lane];
            along[lane] += p[lane] * dp[lane];
        }
    }
    let inverse = 1.0 / sums.iter().sum::<f32>();
    let mean = along.iter().sum::<f32>() * inverse;
    for (p, dp) in p.iter_mut().zip(dp) {
        *p *= inverse;
        *dp = *p * (*dp - mean) * scale;
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, Checked, buffer, check};
    use super::QUERIES;
    use crate::backend::{AttentionShape, Backend, BackwardStep, DeviceOps, Element, KvLayer, Mask, Segment};

    #[test]
    fn derivatives_are_those_of_finite_differences() {
        let at = |start, count, mask| Segment { count, past: 0, start, mask };
        let batches = [
            vec![at(0, 1, Mask::Causal)],
            vec![at(0, 5, Mask::Causal), at(5, 0, Mask::Full), at(5, 3, Mask::Full)],
            vec![at(0, QUERIES + 3, Mask::Causal)],
        ];
        for (heads, kv_heads, head_dim) in [(1, 1, 2), (4, 2, 4)] {
            for segments in &batches {
                let rows: usize = segments.iter().map(|segment| segment.count).sum();
                let shape = AttentionShape { heads, kv_heads, head_dim, capacity: QUERIES + 4 };
                let width = shape.qkv_width();
                check(
                    Case::new(&[rows * width], rows * heads * head_dim),
                    |inputs| oracle(&inputs[0], segments, &shape),
                    |backend, inputs, dy, derivatives| {
                        // Angles of 0, so that the step only fills the cache.
                        let rope: Vec<f32> = (0..QUERIES + 4)
                            .flat_map(|_| [1.0, 0.0].map(|v| vec![v; head_dim / 2]).concat())
                            .collect();
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
