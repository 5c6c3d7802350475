//! Causal attention over the cache.
//!
//! For one key and value head and some tokens:
//! 1. Copy the keys in blocks of 32 positions, transposed, so that a vector holds 32 scores and no sum runs across it.
//! 2. For each query of the heads that share them: scores, softmax with the maximum subtracted, weighted sum of values.
//!
//! Every sum takes its terms in the order of elements or positions, in `f32` without fused multiply-adds, so all
//! instruction sets, batch sizes and numbers of threads give the same bits. Floor 4.

use super::exp::exp;
use super::parallel::{Tiles, Workers};
use super::simd::{Isa, Kernel, Simd};
use crate::backend::AttentionShape;
use std::cell::RefCell;
use std::ops::Range;

/// Positions of a block of transposed keys.
const BLOCK: usize = 32;
/// Tokens of a task: enough to pay for transposing the keys.
const TASK_TOKENS: usize = 64;

/// Attention of the queries in `qkv`, `[count, shape.qkv_width()]`, at positions `past..past + count`; `keys` and
/// `values` are `[kv_heads, capacity, head_dim]`, `out` is `[count, heads * head_dim]`.
pub(super) fn attention(
    isa: Isa,
    workers: &Workers,
    qkv: &[f32],
    count: usize,
    past: usize,
    shape: &AttentionShape,
    keys: &[f32],
    values: &[f32],
    out: &mut [f32],
) {
    let AttentionShape { heads, kv_heads, head_dim, capacity } = *shape;
    let out = Tiles::new(out, heads * head_dim);
    let cache_head = capacity * head_dim;
    let work = (count * heads * head_dim).saturating_mul(past + count);
    workers.run(count.div_ceil(TASK_TOKENS) * kv_heads, work, |task| {
        let (first, kv_head) = (task / kv_heads * TASK_TOKENS, task % kv_heads);
        let cached = kv_head * cache_head..(kv_head + 1) * cache_head;
        isa.run(Task {
            shape,
            qkv,
            past,
            tokens: first..(first + TASK_TOKENS).min(count),
            kv_head,
            keys: &keys[cached.clone()],
            values: &values[cached],
            out: &out,
        });
    });
}

/// Some tokens' queries of the heads that share one key and value head.
struct Task<'a> {
    shape: &'a AttentionShape,
    /// `[count, qkv_width]`
    qkv: &'a [f32],
    past: usize,
    tokens: Range<usize>,
    kv_head: usize,
    /// `[capacity, head_dim]`
    keys: &'a [f32],
    /// `[capacity, head_dim]`
    values: &'a [f32],
    /// `[count, heads * head_dim]`
    out: &'a Tiles<'a>,
}

/// Memory that a thread keeps between tasks.
#[derive(Default)]
struct Scratch {
    /// `[blocks, head_dim, BLOCK]`
    keys: Vec<[f32; BLOCK]>,
    /// `[blocks * BLOCK]`
    scores: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Kernel for Task<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        // Taken out rather than borrowed: a closure would not be compiled for the vector instructions.
        let mut scratch = SCRATCH.take();
        self.run_with(&mut scratch);
        SCRATCH.set(scratch);
    }
}

impl Task<'_> {
    #[inline(always)]
    fn run_with(&self, scratch: &mut Scratch) {
        let AttentionShape { heads, kv_heads, head_dim, .. } = *self.shape;
        let scale = 1.0 / (head_dim as f32).sqrt();
        let end = self.past + self.tokens.end;
        let blocks = end.div_ceil(BLOCK);
        if scratch.keys.len() < blocks * head_dim {
            scratch.keys.resize(blocks * head_dim, [0.0; BLOCK]);
        }
        if scratch.scores.len() < blocks * BLOCK {
            scratch.scores.resize(blocks * BLOCK, 0.0);
        }
        for (position, key) in self.keys.chunks_exact(head_dim).take(end).enumerate() {
            let block = &mut scratch.keys[position / BLOCK * head_dim..][..head_dim];
            for (column, &value) in block.iter_mut().zip(key) {
                column[position % BLOCK] = value;
            }
        }
        let group = heads / kv_heads;
        for t in self.tokens.clone() {
            // A query sees everything up to itself.
            let seen = self.past + t + 1;
            for head in self.kv_head * group..(self.kv_head + 1) * group {
                let q = &self.qkv[t * self.shape.qkv_width() + head * head_dim..][..head_dim];
                let keys = scratch.keys.chunks_exact(head_dim);
                for (keys, out) in keys.zip(scratch.scores[..seen.next_multiple_of(BLOCK)].as_chunks_mut().0)
                {
                    *out = scores(q, keys, scale);
                }
                let scores = &mut scratch.scores[..seen];
                let total = softmax_numerators(scores);
                self.add_values(scores, total, t, head * head_dim);
            }
        }
    }

    /// `out[t, column..] = sum over positions of weight * value, / total`.
    #[inline(always)]
    fn add_values(&self, weights: &[f32], total: f32, t: usize, column: usize) {
        let head_dim = self.shape.head_dim;
        let mut d = 0;
        while d < head_dim {
            let rest = head_dim - d;
            if rest >= 32 {
                self.store(t, column + d, total, weighted_sum::<32>(weights, self.values, head_dim, d));
                d += 32;
            } else if rest >= 8 {
                self.store(t, column + d, total, weighted_sum::<8>(weights, self.values, head_dim, d));
                d += 8;
            } else {
                self.store(t, column + d, total, weighted_sum::<2>(weights, self.values, head_dim, d));
                d += 2;
            }
        }
    }

    #[inline(always)]
    fn store<const N: usize>(&self, t: usize, column: usize, total: f32, sums: [f32; N]) {
        for (i, sum) in sums.into_iter().enumerate() {
            // SAFETY: tasks differ in tokens or heads.
            unsafe { self.out.set(t, column + i, sum / total) };
        }
    }
}

/// Scaled dot products of a query with a block of transposed keys, `[head_dim, BLOCK]`.
#[inline(always)]
fn scores(q: &[f32], keys: &[[f32; BLOCK]], scale: f32) -> [f32; BLOCK] {
    let mut sums = [0.0; BLOCK];
    for (q, keys) in q.iter().zip(keys) {
        for i in 0..BLOCK {
            sums[i] += q * keys[i];
        }
    }
    sums.map(|sum| sum * scale)
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

/// `sum over positions of weight * values[position, d..d + N]`.
#[inline(always)]
fn weighted_sum<const N: usize>(weights: &[f32], values: &[f32], head_dim: usize, d: usize) -> [f32; N] {
    let mut sums = [0.0; N];
    for (weight, value) in weights.iter().zip(values.chunks_exact(head_dim)) {
        let value = &value[d..d + N];
        for i in 0..N {
            sums[i] += weight * value[i];
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Random, backend, backends, f32_buffer, read};
    use crate::backend::{AttentionShape, Backend, Element, KvLayer};

    /// Largest deviation from the `f64` oracle where values are about 1. Measured 1.2e-7.
    const TOLERANCE: f64 = 6e-7;

    fn oracle(
        qkv: &[f32],
        count: usize,
        past: usize,
        shape: &AttentionShape,
        keys: &[f32],
        values: &[f32],
    ) -> Vec<f64> {
        let AttentionShape { heads, kv_heads, head_dim, capacity } = *shape;
        let mut out = Vec::new();
        for t in 0..count {
            for head in 0..heads {
                let q = &qkv[t * shape.qkv_width() + head * head_dim..][..head_dim];
                let at = |p: usize| (head / (heads / kv_heads) * capacity + p) * head_dim;
                let scores: Vec<f64> = (0..=past + t)
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
            (3, 1, 48, 70, 1, 60.0),
        ] {
            let shape = AttentionShape { heads, kv_heads, head_dim, capacity: past + count + 3 };
            let mut qkv = random.floats(count * shape.qkv_width());
            qkv.iter_mut().for_each(|v| *v *= scale);
            let (keys, values) = (random.floats(shape.cache_len()), random.floats(shape.cache_len()));
            let expected = oracle(&qkv, count, past, &shape, &keys, &values);
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
                    backend.attention(&input, rest, past + first, &shape, cache.as_ref(), &mut out).unwrap();
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

    #[test]
    fn heads_that_cannot_be_shared_are_an_error() {
        let mut backend = backend(1, true);
        let shape = AttentionShape { heads: 3, kv_heads: 2, head_dim: 4, capacity: 3 };
        let mut make = || backend.buffer(Element::F32, 64).unwrap();
        let (qkv, mut out, cache) = (make(), make(), KvLayer { keys: make(), values: make() });
        let error = backend.attention(&qkv, 1, 0, &shape, cache.as_ref(), &mut out).unwrap_err();
        assert_eq!(error.to_string(), "attention: 3 query heads cannot share 2 key and value heads");
    }
}
