//! Attention over the KV cache. Each row attends to its own sequence.
//!
//! A task takes one KV head and some tokens:
//! 1. Copy the keys in transposed blocks of 32 positions. A vector then holds scores of several positions, and no sum
//!    runs across its lanes.
//! 2. Take a few queries at a time from the heads that share these keys and values, so that keys and values are loaded
//!    once for all of them. Compute the scores, the softmax with the maximum subtracted, and the weighted sum of
//!    values.
//!
//! The order of every sum depends only on elements and positions, and sums are in `f32` without fused multiply-adds.
//! All instruction sets, batch sizes and numbers of threads therefore give the same bits.

use super::columns::UNIT;
use super::exp::exp;
use super::parallel::{Tiles, Workers};
use super::simd::{Isa, Kernel, Simd, for_each_part};
use crate::backend::{AttentionShape, Segment};
use std::array;
use std::cell::RefCell;
use std::ops::Range;

/// Vectors of a unit on the instruction set with the shortest vectors.
const MAX_VECTORS: usize = 8;
/// Tokens per task: enough to amortize transposing the keys.
const TASK_TOKENS: usize = 64;

/// Attention of the queries in `qkv`, `[rows, shape.qkv_width()]`, whose rows are those of `segments`. `keys` and
/// `values` are `[kv_heads, capacity, head_dim]`, `out` is `[rows, heads * head_dim]`.
pub(super) fn attention(
    isa: Isa,
    workers: &Workers,
    qkv: &[f32],
    segments: &[Segment],
    shape: &AttentionShape,
    keys: &[f32],
    values: &[f32],
    out: &mut [f32],
) {
    let AttentionShape { heads, kv_heads, head_dim, capacity } = *shape;
    let out = Tiles::new(out, heads * head_dim);
    let (mut runs, mut work) = (0usize, 0usize);
    for segment in segments {
        runs += segment.count.div_ceil(TASK_TOKENS);
        work = work.saturating_add((segment.count * heads * head_dim).saturating_mul(segment.end()));
    }
    workers.run(runs * kv_heads, work, |task| {
        let (run, kv_head) = (task / kv_heads, task % kv_heads);
        let (first_row, segment, tokens) = run_of(segments, run);
        let cached = (kv_head * capacity + segment.start) * head_dim..(kv_head + 1) * capacity * head_dim;
        isa.run(AttentionTask {
            shape,
            qkv,
            segment,
            first_row,
            tokens,
            kv_head,
            keys: &keys[cached.clone()],
            values: &values[cached],
            out: &out,
        });
    });
}

/// The rows of run number `run`. A segment has one run for each [`TASK_TOKENS`] tokens. Returns the segment's first row
/// in the batch, the segment, and the run's tokens within the segment.
fn run_of(segments: &[Segment], mut run: usize) -> (usize, &Segment, Range<usize>) {
    let mut first_row = 0;
    for segment in segments {
        let runs = segment.count.div_ceil(TASK_TOKENS);
        if run < runs {
            let first = run * TASK_TOKENS;
            return (first_row, segment, first..(first + TASK_TOKENS).min(segment.count));
        }
        run -= runs;
        first_row += segment.count;
    }
    unreachable!("runs are counted over the same segments")
}

/// The queries of some tokens, for the heads that share one KV head.
struct AttentionTask<'a> {
    shape: &'a AttentionShape,
    /// `[rows, qkv_width]`
    qkv: &'a [f32],
    segment: &'a Segment,
    /// The row of the segment's first token.
    first_row: usize,
    /// Tokens of the segment.
    tokens: Range<usize>,
    kv_head: usize,
    /// From the sequence's first position on, `[positions, head_dim]`.
    keys: &'a [f32],
    /// As `keys`.
    values: &'a [f32],
    /// `[rows, heads * head_dim]`
    out: &'a Tiles<'a>,
}

/// Buffers that a thread keeps between tasks.
#[derive(Default)]
struct AttentionScratch {
    /// `[blocks, head_dim, UNIT]`
    keys: Vec<[f32; UNIT]>,
    /// `[queries, blocks, UNIT]`
    scores: Vec<[f32; UNIT]>,
}

/// Runs a block for each of at most four queries. The iterations are written out: LLVM would not unroll so long a loop,
/// and sums with an unknown index are not kept in registers.
macro_rules! for_each_query {
    ($query:ident of $count:ident $body:block) => {
        for_each_query!(@ $query $count $body 0 1 2 3)
    };
    (@ $query:ident $count:ident $body:block $($index:literal)*) => {
        $(if $index < $count {
            let $query: usize = $index;
            $body
        })*
    };
}

thread_local! {
    static SCRATCH: RefCell<AttentionScratch> = RefCell::default();
}

impl Kernel for AttentionTask<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // Taken, not borrowed: a closure would not be compiled for the vector instructions.
        let mut scratch = SCRATCH.take();
        match S::TILE_QUERIES {
            4 => self.run_with::<S, 4>(s, &mut scratch),
            2 => self.run_with::<S, 2>(s, &mut scratch),
            1 => self.run_with::<S, 1>(s, &mut scratch),
            _ => unreachable!("tiles have one, two or four queries"),
        }
        SCRATCH.set(scratch);
    }
}

impl AttentionTask<'_> {
    #[inline(always)]
    fn run_with<S: Simd, const Q: usize>(&self, s: S, scratch: &mut AttentionScratch) {
        let AttentionShape { heads, kv_heads, head_dim, .. } = *self.shape;
        // The last token attends to the most positions.
        let end = self.segment.seen(self.tokens.end - 1);
        let blocks = end.div_ceil(UNIT);
        if scratch.keys.len() < blocks * head_dim {
            scratch.keys.resize(blocks * head_dim, [0.0; UNIT]);
        }
        if scratch.scores.len() < Q * blocks {
            scratch.scores.resize(Q * blocks, [0.0; UNIT]);
        }
        for (position, key) in self.keys.chunks_exact(head_dim).take(end).enumerate() {
            let block = &mut scratch.keys[position / UNIT * head_dim..][..head_dim];
            for (column, &value) in block.iter_mut().zip(key) {
                column[position % UNIT] = value;
            }
        }
        let queries = self.tokens.len() * (heads / kv_heads);
        let tiled = queries - queries % Q;
        for first in (0..tiled).step_by(Q) {
            self.attend::<S, Q>(s, scratch, blocks, first);
        }
        for query in tiled..queries {
            self.attend::<S, 1>(s, scratch, blocks, query);
        }
    }

    /// Attention of `Q` queries from query `first` on. The queries that share the keys are numbered token by token.
    /// Each query has `blocks` blocks of scores.
    #[inline(always)]
    fn attend<S: Simd, const Q: usize>(
        &self,
        s: S,
        scratch: &mut AttentionScratch,
        blocks: usize,
        first: usize,
    ) {
        let AttentionShape { heads, kv_heads, head_dim, .. } = *self.shape;
        let group = heads / kv_heads;
        // The row of each query, and the first column of its head.
        let places: [(usize, usize); Q] = array::from_fn(|i| {
            let query = first + i;
            let row = self.first_row + self.tokens.start + query / group;
            (row, (self.kv_head * group + query % group) * head_dim)
        });
        let width = self.shape.qkv_width();
        let q = places.map(|(row, column)| &self.qkv[row * width + column..][..head_dim]);
        // Later queries attend to at least as many positions.
        let seen = places.map(|(row, _)| self.segment.seen(row - self.first_row));
        let scale = 1.0 / (head_dim as f32).sqrt();
        for index in 0..seen[Q - 1].div_ceil(UNIT) {
            let keys = &scratch.keys[index * head_dim..][..head_dim];
            let scores = dot_products(s, q, keys);
            for_each_query!(i of Q {
                let block = &mut scratch.scores[i * blocks + index];
                for_each_part!(part of S {
                    s.store(scores[i][part], block, part);
                });
                block.iter_mut().for_each(|score| *score *= scale);
            });
        }
        let mut totals = [0.0; Q];
        for (total, (scores, seen)) in
            totals.iter_mut().zip(scratch.scores.chunks_exact_mut(blocks).zip(seen))
        {
            *total = softmax_numerators(&mut scores.as_flattened_mut()[..seen]);
        }
        let weights: [&[f32]; Q] =
            array::from_fn(|i| &scratch.scores[i * blocks..].as_flattened()[..seen[i]]);
        let whole = head_dim - head_dim % UNIT;
        for column in (0..whole).step_by(UNIT) {
            let sums = weighted_sums(s, weights, self.values, head_dim, column);
            for (i, sums) in sums.iter().enumerate() {
                self.store(places[i], column, sums, totals[i]);
            }
        }
        for i in 0..Q {
            let eights = head_dim - head_dim % 8;
            for column in (whole..eights).step_by(8) {
                let sums: [f32; 8] = weighted_sum(weights[i], self.values, head_dim, column);
                self.store(places[i], column, &sums, totals[i]);
            }
            for column in (eights..head_dim).step_by(2) {
                let sums: [f32; 2] = weighted_sum(weights[i], self.values, head_dim, column);
                self.store(places[i], column, &sums, totals[i]);
            }
        }
    }

    /// Writes `sums / total` to columns of a head, from `column` on.
    #[inline(always)]
    fn store(&self, (row, head): (usize, usize), column: usize, sums: &[f32], total: f32) {
        for (i, sum) in sums.iter().enumerate() {
            // SAFETY: tasks differ in rows or heads.
            unsafe { self.out.set(row, head + column + i, sum / total) };
        }
    }
}

/// Dot products of queries with a block of transposed keys, `[head_dim, UNIT]`.
#[inline(always)]
fn dot_products<S: Simd, const Q: usize>(
    s: S,
    q: [&[f32]; Q],
    keys: &[[f32; UNIT]],
) -> [[S::F32; MAX_VECTORS]; Q] {
    let mut sums = [[s.splat(0.0); MAX_VECTORS]; Q];
    for (d, keys) in keys.iter().enumerate() {
        for_each_query!(i of Q {
            let q = s.splat(q[i][d]);
            for_each_part!(part of S {
                sums[i][part] = s.mul_then_add(q, s.load(keys, part), sums[i][part]);
            });
        });
    }
    sums
}

/// For each query, `sum over positions of weight * values[position, column..column + UNIT]`. The first query has the
/// fewest weights.
#[inline(always)]
fn weighted_sums<S: Simd, const Q: usize>(
    s: S,
    weights: [&[f32]; Q],
    values: &[f32],
    head_dim: usize,
    column: usize,
) -> [[f32; UNIT]; Q] {
    let mut sums = [[s.splat(0.0); MAX_VECTORS]; Q];
    let all_see = weights[0].len();
    let seen_by_all = weights.map(|weights| &weights[..all_see]);
    for (position, row) in values.chunks_exact(head_dim).take(all_see).enumerate() {
        let row = unit_at(row, column);
        for_each_query!(i of Q {
            let weight = s.splat(seen_by_all[i][position]);
            for_each_part!(part of S {
                sums[i][part] = s.mul_then_add(weight, s.load(row, part), sums[i][part]);
            });
        });
    }
    let mut stored = [[0.0; UNIT]; Q];
    for_each_query!(i of Q {
        for (position, &weight) in weights[i].iter().enumerate().skip(all_see) {
            let (weight, row) = (s.splat(weight), unit_at(&values[position * head_dim..], column));
            for_each_part!(part of S {
                sums[i][part] = s.mul_then_add(weight, s.load(row, part), sums[i][part]);
            });
        }
        for_each_part!(part of S {
            s.store(sums[i][part], &mut stored[i], part);
        });
    });
    stored
}

/// The unit of a row that begins at `column`.
#[inline(always)]
fn unit_at(row: &[f32], column: usize) -> &[f32; UNIT] {
    row[column..].first_chunk().expect("whole units are asked for")
}

/// `sum over positions of weight * values[position, column..column + N]`.
#[inline(always)]
fn weighted_sum<const N: usize>(weights: &[f32], values: &[f32], head_dim: usize, column: usize) -> [f32; N] {
    let mut sums = [0.0; N];
    for (weight, value) in weights.iter().zip(values.chunks_exact(head_dim)) {
        let value = &value[column..column + N];
        for i in 0..N {
            sums[i] += weight * value[i];
        }
    }
    sums
}

/// Turns scores into `exp(score - max)` and returns their sum.
#[inline(always)]
fn softmax_numerators(scores: &mut [f32]) -> f32 {
    const LANES: usize = 16;
    let mut maxima = [f32::NEG_INFINITY; LANES];
    for chunk in scores.chunks(LANES) {
        for (max, &score) in maxima.iter_mut().zip(chunk) {
            *max = if score > *max { score } else { *max };
        }
    }
    let max = maxima.into_iter().fold(f32::NEG_INFINITY, f32::max);
    let mut sums = [0.0f32; LANES];
    let (chunks, tail) = scores.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for (sum, score) in sums.iter_mut().zip(chunk) {
            *score = exp(*score - max);
            *sum += *score;
        }
    }
    for (sum, score) in sums.iter_mut().zip(tail) {
        *score = exp(*score - max);
        *sum += *score;
    }
    sums.into_iter().sum()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Random, backend, backends, f32_buffer, read};
    use super::TASK_TOKENS;
    use crate::backend::{AttentionShape, Backend, DeviceOps, Element, KvLayer, Mask, Segment};

    /// Largest deviation from the `f64` oracle for values of about 1. Measured 1.2e-7, and 1.4e-7 over segments.
    const TOLERANCE: f64 = 6e-7;

    fn oracle(
        qkv: &[f32],
        segments: &[Segment],
        shape: &AttentionShape,
        keys: &[f32],
        values: &[f32],
    ) -> Vec<f64> {
        let AttentionShape { heads, kv_heads, head_dim, capacity } = *shape;
        let mut out = Vec::new();
        let rows = segments.iter().flat_map(|segment| (0..segment.count).map(move |t| (segment, t)));
        for (row, (segment, t)) in rows.enumerate() {
            let seen = match segment.mask {
                Mask::Causal => segment.past + t + 1,
                Mask::Full => segment.past + segment.count,
            };
            for head in 0..heads {
                let q = &qkv[row * shape.qkv_width() + head * head_dim..][..head_dim];
                let at = |p: usize| (head / (heads / kv_heads) * capacity + segment.start + p) * head_dim;
                let scores: Vec<f64> = (0..seen)
                    .map(|p| {
                        let dot: f64 =
                            (0..head_dim).map(|d| f64::from(q[d]) * f64::from(keys[at(p) + d])).sum();
                        dot / (head_dim as f64).sqrt()
                    })
                    .collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
                for d in 0..head_dim {
                    let weighted = scores.iter().enumerate();
                    out.push(
                        weighted.map(|(p, s)| (s - max).exp() / sum * f64::from(values[at(p) + d])).sum(),
                    );
                }
            }
        }
        out
    }

    #[test]
    fn agrees_with_the_oracle_and_does_not_depend_on_batch_or_threads() {
        let mut random = Random::new(1);
        let mut worst = 0.0f64;
        for (heads, kv_heads, head_dim, count, past, scale) in [
            (1, 1, 2, 1, 0, 1.0),
            (8, 4, 8, 33, 0, 1.0),
            (8, 4, 8, 5, 70, 10.0),
            (6, 2, 10, 7, 3, 1.0),
            (4, 1, 64, 40, 31, 3.0),
            (2, 2, 128, 1, 300, 1.0),
            (2, 2, 64, 67, 5, 1.0),
            (3, 1, 48, 70, 1, 60.0),
        ] {
            let shape = AttentionShape { heads, kv_heads, head_dim, capacity: past + count + 3 };
            let mut qkv = random.floats(count * shape.qkv_width());
            qkv.iter_mut().for_each(|v| *v *= scale);
            let (keys, values) = (random.floats(shape.cache_len()), random.floats(shape.cache_len()));
            let expected = oracle(&qkv, &[Segment::causal(past, count)], &shape, &keys, &values);
            let mut whole: Vec<f32> = Vec::new();
            for (threads, first) in [(1, 0), (3, 0), (2, count - 1), (1, count / 2)] {
                for mut backend in backends(threads) {
                    let rest = count - first;
                    let input = f32_buffer(&mut backend, &qkv[first * shape.qkv_width()..]);
                    let cache = KvLayer {
                        keys: f32_buffer(&mut backend, &keys),
                        values: f32_buffer(&mut backend, &values),
                    };
                    let mut out = backend.buffer(Element::F32, rest * heads * head_dim).unwrap();
                    let segments = [Segment::causal(past + first, rest)];
                    backend.attention(&input, &segments, &shape, cache.as_ref(), &mut out).unwrap();
                    let found = read(&mut backend, &out);
                    for (found, expected) in found.iter().zip(&expected[first * heads * head_dim..]) {
                        let error = (f64::from(*found) - expected).abs() / f64::from(scale);
                        worst = worst.max(error);
                        assert!(error < TOLERANCE, "{shape:?}: {found}, not {expected}");
                    }
                    if whole.is_empty() {
                        whole = found;
                    } else {
                        assert_eq!(found, whole[first * heads * head_dim..], "{shape:?} from token {first}");
                    }
                }
            }
        }
        println!("worst error {worst:e}");
    }

    /// Rows, past positions and mask of each segment of a batch.
    type Parts = &'static [(usize, usize, Mask)];

    #[test]
    fn segments_agree_with_the_oracle_and_have_the_bits_of_each_alone() {
        use Mask::{Causal, Full};
        const BATCHES: [Parts; 8] = [
            &[(1, 0, Full)],
            &[(40, 0, Full)],
            &[(1, 0, Causal), (1, 70, Causal), (1, 5, Causal)],
            &[(3, 0, Full), (0, 9, Causal), (5, 0, Full), (4, 0, Causal)],
            &[(2, 31, Causal), (2, 31, Full), (33, 64, Full), (1, 0, Causal)],
            // A segment of more than one task, between other segments.
            &[(7, 2, Causal), (TASK_TOKENS + 3, 1, Causal), (TASK_TOKENS + 1, 4, Full), (5, 0, Full)],
            &[(TASK_TOKENS, 0, Full), (1, 300, Causal)],
            &[],
        ];
        let mut random = Random::new(2);
        let mut worst = 0.0f64;
        for (heads, kv_heads, head_dim) in [(1, 1, 2), (6, 2, 10), (4, 4, 34), (3, 1, 64)] {
            for parts in BATCHES {
                // The cache holds the sequences in another order than the batch, with gaps between them.
                let mut capacity = 3;
                let mut segments: Vec<Segment> = Vec::new();
                for &(count, past, mask) in parts.iter().rev() {
                    segments.insert(0, Segment { count, past, start: capacity, mask });
                    capacity += past + count + 2;
                }
                let rows: usize = segments.iter().map(|segment| segment.count).sum();
                let shape = AttentionShape { heads, kv_heads, head_dim, capacity };
                let (width, out_width) = (shape.qkv_width(), heads * head_dim);
                let qkv = random.floats(rows * width);
                let (keys, values) = (random.floats(shape.cache_len()), random.floats(shape.cache_len()));
                let expected = oracle(&qkv, &segments, &shape, &keys, &values);
                for threads in [1, 3] {
                    for mut backend in backends(threads) {
                        let cache = KvLayer {
                            keys: f32_buffer(&mut backend, &keys),
                            values: f32_buffer(&mut backend, &values),
                        };
                        let mut attend = |qkv: &[f32], segments: &[Segment]| {
                            let input = f32_buffer(&mut backend, qkv);
                            let len = qkv.len() / width * out_width;
                            let mut out = backend.buffer(Element::F32, len).unwrap();
                            backend.attention(&input, segments, &shape, cache.as_ref(), &mut out).unwrap();
                            read(&mut backend, &out)
                        };
                        let found = attend(&qkv, &segments);
                        for (found, expected) in found.iter().zip(&expected) {
                            let error = (f64::from(*found) - expected).abs();
                            worst = worst.max(error);
                            assert!(error < TOLERANCE, "{shape:?} {segments:?}: {found}, not {expected}");
                        }
                        let mut first = 0;
                        for segment in &segments {
                            let rows = first..first + segment.count;
                            let alone = attend(&qkv[rows.start * width..rows.end * width], &[*segment]);
                            assert_eq!(
                                alone,
                                found[rows.start * out_width..rows.end * out_width],
                                "{segment:?}"
                            );
                            first = rows.end;
                        }
                    }
                }
            }
        }
        println!("worst error {worst:e}");
    }

    #[test]
    fn heads_that_cannot_be_shared_are_an_error() {
        let mut backend = backend(1, true);
        let shape = AttentionShape { heads: 3, kv_heads: 2, head_dim: 4, capacity: 3 };
        let mut make = || backend.buffer(Element::F32, 64).unwrap();
        let (qkv, mut out, cache) = (make(), make(), KvLayer { keys: make(), values: make() });
        let error =
            backend.attention(&qkv, &[Segment::causal(0, 1)], &shape, cache.as_ref(), &mut out).unwrap_err();
        assert_eq!(error.to_string(), "attention: 3 query heads cannot share 2 key and value heads");
    }
}
