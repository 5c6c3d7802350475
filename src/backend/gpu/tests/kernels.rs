//! Tests of the steps without weights.

use super::operands::{Random, buffer, read, some, worst, zeros};
use super::{gpu, gpu_with};
use crate::backend::cpu::CpuBackend;
use crate::backend::gpu::select::{MOST_PREFILL_HEAD_DIM, PREFILL_QUERIES};
use crate::backend::gpu::variants::Variant;
use crate::backend::gpu::{GpuBackend, GpuOptions};
use crate::backend::{
    AttentionShape, Backend, Element, GateActivation, KvLayer, Mask, Norm, QkNorm, Segment, TopK,
};

/// Largest deviation from the `f64` reference for results of about 1. Measured on lavapipe: 4.2e-7, 4.1e-7, 1.2e-6, and
/// 5.5e-7 for gates. GPUs may compute `exp`, roots and divisions less accurately, within WGSL's limits.
const NORM_TOLERANCE: f64 = 2e-6;
const ROPE_TOLERANCE: f64 = 4e-6;
const ATTENTION_TOLERANCE: f64 = 1e-5;
/// Relative to `max(1, |expected|)`.
const GATE_TOLERANCE: f64 = 1e-5;

/// More rows than one dimension has workgroups.
const MANY_ROWS: usize = 70_000;

/// All cases. In WebAssembly only one with [`MANY_ROWS`], because SwiftShader takes half a minute for each.
fn some_of_many<T>(rows: usize, cases: &[T]) -> &[T] {
    if rows == MANY_ROWS { some(cases, 0) } else { cases }
}

/// A backend with base kernels only; `None` if `gpu` does not sum by subgroups.
async fn base_of(gpu: &GpuBackend) -> Option<GpuBackend> {
    let options = GpuOptions { software: true, base_kernels: true, ..GpuOptions::default() };
    if gpu.variants.has(Variant::Subgroups) { gpu_with(&options).await } else { None }
}

fn norm_of(x: &[f64], weight: &[f32], epsilon: f32) -> Vec<f64> {
    let mean = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
    let factor = 1.0 / (mean + f64::from(epsilon)).sqrt();
    x.iter().zip(weight).map(|(x, &w)| x * factor * f64::from(w)).collect()
}

fn one(values: Vec<f64>) -> Vec<(f64, f64)> {
    values.into_iter().map(|value| (value, 1.0)).collect()
}

fn between(twin: &[f32]) -> Vec<(f64, f64)> {
    twin.iter().map(|&value| (f64::from(value), f64::from(value).abs().max(1.0))).collect()
}

pub(super) async fn add_rms_norm_agrees_and_updates_the_residual() {
    async fn run<B: Backend>(b: &mut B, x: &[f32], delta: Option<&[f32]>, w: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let norm = Norm { weight: buffer(b, w), width: w.len(), epsilon: 1e-5 };
        let mut residual = buffer(b, x);
        let delta = delta.map(|delta| buffer(b, delta));
        let mut out = zeros(b, x.len());
        b.add_rms_norm(&mut residual, delta.as_ref(), x.len() / w.len(), norm.as_ref(), &mut out).unwrap();
        (read(b, &residual, x.len()).await, read(b, &out, x.len()).await)
    }
    let Some(mut gpu) = gpu().await else { return };
    let mut base = base_of(&gpu).await;
    let (mut cpu, mut random, mut most) = (CpuBackend::new(), Random::new(1), 0.0f64);
    for (count, width) in [(1, 1), (1, 7), (3, 16), (2, 172), (5, 331), (300, 768), (MANY_ROWS, 3)] {
        for &with_delta in some_of_many(count, &[true, false]) {
            let (x, delta, w) =
                (random.floats(count * width), random.floats(count * width), random.floats(width));
            let delta = with_delta.then_some(&delta[..]);
            let (residual, out) = run(&mut gpu, &x, delta, &w).await;
            if let Some(base) = &mut base {
                let plain = run(base, &x, delta, &w).await;
                assert_eq!((&residual, &out), (&plain.0, &plain.1), "{count} x {width}: sums have one order");
            }
            let sums: Vec<f32> = match delta {
                Some(delta) => x.iter().zip(delta).map(|(x, d)| x + d).collect(),
                None => x.clone(),
            };
            assert_eq!(residual, sums);
            let sums: Vec<f64> = sums.into_iter().map(f64::from).collect();
            let expected = sums.chunks_exact(width).flat_map(|row| norm_of(row, &w, 1e-5)).collect();
            let error = worst(&out, &one(expected));
            most = most.max(error);
            assert!(error < NORM_TOLERANCE, "{count} x {width}: {error:.2e}");
            assert!(worst(&out, &between(&run(&mut cpu, &x, delta, &w).await.1)) < NORM_TOLERANCE);
        }
    }
    println!("add_rms_norm: largest error {most:.2e}");
}

/// A test case of attention.
type Case = (AttentionShape, Vec<Segment>);

/// One sequence, and several whose order in the cache differs from that in the batch.
fn attention_cases() -> Vec<Case> {
    use Mask::{Causal, Full};
    let shape = |heads, kv_heads, head_dim, capacity| AttentionShape { heads, kv_heads, head_dim, capacity };
    let one = |past, count| vec![Segment::causal(past, count)];
    let at = |start, past, count, mask| Segment { count, past, start, mask };
    vec![
        (shape(1, 1, 2, 1), one(0, 1)),
        (shape(8, 4, 8, 40), one(0, 33)),
        (shape(8, 4, 16, 300), one(190, 1)),
        (shape(6, 2, 34, 77), one(3, 5)),
        (shape(4, 2, 128, 131), one(63, 8)),
        (shape(3, 1, 128, 150), one(128, 17)),
        (shape(2, 2, 130, 40), one(5, 20)),
        (shape(2, 1, 256, 70), one(64, 3)),
        (shape(4, 4, 64, 129), one(0, 129)),
        (shape(4, 4, 64, 140), vec![at(7, 0, 129, Full)]),
        (shape(2, 1, 20, 90), vec![at(1, 70, 3, Full)]),
        // One token of each sequence, as in batched decode.
        (
            shape(8, 4, 16, 300),
            vec![at(100, 90, 1, Causal), at(0, 63, 1, Causal), at(299, 0, 1, Causal), at(210, 64, 1, Causal)],
        ),
        (shape(2, 1, 8, 200), (0..40).map(|i| at(195 - 5 * i, i % 4, 1 + i % 2, Causal)).collect()),
        // Prefill mixed with decode, as when a prompt joins a batch, and segments with a full mask.
        (
            shape(6, 2, 34, 150),
            vec![
                at(80, 3, 20, Causal),
                at(0, 64, 1, Causal),
                at(110, 0, 0, Causal),
                at(120, 0, 9, Full),
                at(70, 0, 3, Full),
                at(130, 7, 13, Causal),
            ],
        ),
        (shape(2, 2, 130, 60), vec![at(30, 0, 20, Full), at(0, 5, 12, Causal)]),
    ]
}

/// For each row: its position, its cache index, the cache index where its sequence starts, and the number of visible
/// positions.
fn places(segments: &[Segment]) -> Vec<[usize; 4]> {
    let rows = segments.iter().flat_map(|segment| (0..segment.count).map(move |row| (segment, row)));
    rows.map(|(&Segment { count, past, start, mask }, row)| {
        let seen = if mask == Mask::Causal { past + row + 1 } else { past + count };
        [past + row, start + past + row, start, seen]
    })
    .collect()
}

pub(super) async fn rope_and_append_kv_agrees() {
    type Out = (Vec<f32>, Vec<f32>, Vec<f32>);
    async fn run<B: Backend>(
        b: &mut B,
        (shape, segments): &Case,
        qkv: &[f32],
        rope: &[f32],
        norms: Option<(&[f32], &[f32])>,
    ) -> Out {
        let norm = |b: &mut B, w: &[f32], epsilon| Norm { weight: buffer(b, w), width: w.len(), epsilon };
        let norms = norms.map(|(q, k)| QkNorm { q: norm(b, q, 1e-5), k: norm(b, k, 1e-4) });
        let mut buffer_qkv = buffer(b, qkv);
        let rope = buffer(b, rope);
        let mut cache = KvLayer { keys: zeros(b, shape.cache_len()), values: zeros(b, shape.cache_len()) };
        b.rope_and_append_kv(
            &mut buffer_qkv,
            segments,
            shape,
            &rope,
            norms.as_ref().map(QkNorm::as_ref),
            cache.as_mut(),
        )
        .unwrap();
        let (keys, values) =
            (read(b, &cache.keys, shape.cache_len()).await, read(b, &cache.values, shape.cache_len()).await);
        (read(b, &buffer_qkv, qkv.len()).await, keys, values)
    }
    let Some(mut gpu) = gpu().await else { return };
    let mut base = base_of(&gpu).await;
    let (mut cpu, mut random, mut most) = (CpuBackend::new(), Random::new(2), 0.0f64);
    for case in attention_cases() {
        let (shape, places) = (case.0, places(&case.1));
        let AttentionShape { heads, kv_heads, head_dim, capacity } = shape;
        let positions = places.iter().map(|&[position, ..]| position + 1).max().unwrap_or(0);
        for with_norms in [false, true] {
            let qkv = random.floats(places.len() * shape.qkv_width());
            let angles = random.floats(positions * head_dim / 2);
            let rope: Vec<f32> = angles
                .chunks_exact(head_dim / 2)
                .flat_map(|row| row.iter().map(|a| a.cos()).chain(row.iter().map(|a| a.sin())))
                .collect();
            let (q, k) = (random.floats(head_dim), random.floats(head_dim));
            let norms = with_norms.then_some((&q[..], &k[..]));
            let (found, keys, values) = run(&mut gpu, &case, &qkv, &rope, norms).await;
            if let Some(base) = &mut base {
                let plain = run(base, &case, &qkv, &rope, norms).await;
                assert_eq!((&found, &keys), (&plain.0, &plain.1), "{case:?}: sums have one order");
            }
            let mut expected = Vec::new();
            for (index, head) in qkv.chunks_exact(head_dim).enumerate() {
                let (t, h) = (index / (heads + 2 * kv_heads), index % (heads + 2 * kv_heads));
                let mut head: Vec<f64> = head.iter().map(|&v| f64::from(v)).collect();
                if h < heads + kv_heads {
                    if with_norms {
                        head = if h < heads { norm_of(&head, &q, 1e-5) } else { norm_of(&head, &k, 1e-4) };
                    }
                    let (cos, sin) = rope[places[t][0] * head_dim..][..head_dim].split_at(head_dim / 2);
                    let before = head.clone();
                    for i in 0..head_dim / 2 {
                        let (a, b) = (before[i], before[i + head_dim / 2]);
                        let (cos, sin) = (f64::from(cos[i]), f64::from(sin[i]));
                        head[i] = a * cos - b * sin;
                        head[i + head_dim / 2] = b * cos + a * sin;
                    }
                }
                expected.extend(head);
            }
            let error = worst(&found, &one(expected));
            most = most.max(error);
            assert!(error < ROPE_TOLERANCE, "{case:?}: {error:.2e}");
            // The cache holds the rows of the fused buffer at their places, and zeros elsewhere.
            for (name, cache, first) in
                [("keys", keys.clone(), heads), ("values", values.clone(), heads + kv_heads)]
            {
                for (i, &cached) in cache.iter().enumerate() {
                    let (h, place, d) = (i / head_dim / capacity, i / head_dim % capacity, i % head_dim);
                    let row = places.iter().position(|&[_, of_row, ..]| of_row == place);
                    let source = row.map(|row| found[row * shape.qkv_width() + (first + h) * head_dim + d]);
                    assert_eq!(cached, source.unwrap_or(0.0), "{name} {case:?} at {place}");
                }
            }
            let twin = run(&mut cpu, &case, &qkv, &rope, norms).await;
            for (found, twin) in [(found, twin.0), (keys, twin.1), (values, twin.2)] {
                assert!(worst(&found, &between(&twin)) < ROPE_TOLERANCE, "{case:?}: the CPU differs");
            }
        }
    }
    println!("rope_and_append_kv: largest error {most:.2e}");
}

pub(super) async fn attention_agrees_in_decode_and_prefill_over_one_segment_and_several() {
    async fn run<B: Backend>(
        b: &mut B,
        shape: &AttentionShape,
        segments: &[Segment],
        qkv: &[f32],
        keys: &[f32],
        values: &[f32],
    ) -> Vec<f32> {
        let cache = KvLayer { keys: buffer(b, keys), values: buffer(b, values) };
        let len = qkv.len() / shape.qkv_width() * shape.heads * shape.head_dim;
        let qkv = buffer(b, qkv);
        let mut out = zeros(b, len);
        b.attention(&qkv, segments, shape, cache.as_ref(), &mut out).unwrap();
        read(b, &out, len).await
    }
    let Some(mut gpu) = gpu().await else { return };
    let (mut cpu, mut random, mut most) = (CpuBackend::new(), Random::new(3), 0.0f64);
    for case in attention_cases() {
        let (shape, segments) = &case;
        let &AttentionShape { heads, kv_heads, head_dim, capacity } = shape;
        let places = places(segments);
        for size in [1.0, 6.0] {
            let qkv: Vec<f32> =
                random.floats(places.len() * shape.qkv_width()).into_iter().map(|v| v * size).collect();
            let (keys, values) = (random.floats(shape.cache_len()), random.floats(shape.cache_len()));
            let mut expected = Vec::new();
            for (t, &[_, _, start, seen]) in places.iter().enumerate() {
                for head in 0..heads {
                    let q = &qkv[t * shape.qkv_width() + head * head_dim..][..head_dim];
                    let cached = (head / (heads / kv_heads) * capacity + start) * head_dim;
                    let row = |cache: &[f32], position: usize| -> Vec<f64> {
                        let at = cached + position * head_dim;
                        cache[at..at + head_dim].iter().map(|&v| f64::from(v)).collect()
                    };
                    let scores: Vec<f64> = (0..seen)
                        .map(|position| {
                            let key = row(&keys, position);
                            let dot: f64 = q.iter().zip(key).map(|(&q, k)| f64::from(q) * k).sum();
                            dot / (head_dim as f64).sqrt()
                        })
                        .collect();
                    let largest = scores.iter().copied().fold(f64::MIN, f64::max);
                    let total: f64 = scores.iter().map(|s| (s - largest).exp()).sum();
                    let mut out = vec![0.0; head_dim];
                    for (position, score) in scores.iter().enumerate() {
                        for (out, v) in out.iter_mut().zip(row(&values, position)) {
                            *out += (score - largest).exp() / total * v;
                        }
                    }
                    expected.extend(out);
                }
            }
            let found = run(&mut gpu, shape, segments, &qkv, &keys, &values).await;
            let error = worst(&found, &one(expected));
            most = most.max(error);
            assert!(error < ATTENTION_TOLERANCE, "{case:?}: {error:.2e}");
            // A segment has the same bits alone as in a batch if both run in the same kernel.
            let mut row = 0;
            for segment in segments {
                let rows = row..row + segment.count;
                row = rows.end;
                let tiled = |count| count >= PREFILL_QUERIES && head_dim <= MOST_PREFILL_HEAD_DIM;
                let longest = segments.iter().map(|segment| segment.count).max().unwrap_or(0);
                if segments.len() == 1 || tiled(longest) != tiled(segment.count) {
                    continue;
                }
                let qkv = &qkv[rows.start * shape.qkv_width()..rows.end * shape.qkv_width()];
                let alone = run(&mut gpu, shape, &[*segment], qkv, &keys, &values).await;
                let width = heads * head_dim;
                assert_eq!(alone, found[rows.start * width..rows.end * width], "{case:?}: {segment:?} alone");
            }
            let twin = run(&mut cpu, shape, segments, &qkv, &keys, &values).await;
            assert!(worst(&found, &between(&twin)) < ATTENTION_TOLERANCE, "{case:?}: the CPU differs");
        }
    }
    println!("attention: largest error {most:.2e}");
}

pub(super) async fn gate_agrees_over_the_whole_range() {
    async fn run<B: Backend>(
        b: &mut B,
        gate_up: &[f32],
        width: usize,
        activation: GateActivation,
    ) -> Vec<f32> {
        let count = gate_up.len() / (2 * width);
        let input = buffer(b, gate_up);
        let mut out = zeros(b, count * width);
        b.gate(&input, count, width, activation, &mut out).unwrap();
        read(b, &out, count * width).await
    }
    let Some(mut gpu) = gpu().await else { return };
    let (mut cpu, mut random, mut most) = (CpuBackend::new(), Random::new(4), 0.0f64);
    for (count, width) in [(1, 1), (2, 7), (3, 172), (200, 333), (4_200_000, 1)] {
        let mut gate_up = random.floats(count * 2 * width);
        for (i, value) in gate_up.iter_mut().enumerate() {
            *value *= [1.0, 10.0, 120.0][i % 3];
        }
        for activation in [GateActivation::Silu, GateActivation::SquaredRelu] {
            let found = run(&mut gpu, &gate_up, width, activation).await;
            let expected: Vec<(f64, f64)> = (0..count * width)
                .map(|i| {
                    let at = i / width * 2 * width + i % width;
                    let (gate, up) = (f64::from(gate_up[at]), f64::from(gate_up[at + width]));
                    let active = match activation {
                        GateActivation::Silu => gate / (1.0 + (-gate).exp()),
                        GateActivation::SquaredRelu => gate.max(0.0).powi(2),
                    };
                    (active * up, (active * up).abs().max(1.0))
                })
                .collect();
            let error = worst(&found, &expected);
            most = most.max(error);
            assert!(error < GATE_TOLERANCE, "{count} x {width} {activation:?}: {error:.2e}");
            let twin = run(&mut cpu, &gate_up, width, activation).await;
            assert!(worst(&found, &between(&twin)) < GATE_TOLERANCE, "{activation:?}: the CPU differs");
        }
    }
    println!("gate: largest error {most:.2e}");
}

/// The number of elements of a row that are at least the k-th largest, and their indices and bits.
type Largest = (u32, Vec<(u32, u32)>);

pub(super) async fn argmax_and_top_k_are_those_of_the_cpu() {
    async fn run<B: Backend>(b: &mut B, x: &[f32], width: usize, k: usize) -> (Vec<u32>, Vec<Largest>) {
        let (count, capacity) = (x.len() / width, k + 3);
        let x = buffer(b, x);
        let mut largest = b.buffer(Element::U32, count).unwrap();
        b.argmax(&x, count, width, &mut largest).unwrap();
        let mut indices = vec![0; count];
        b.read_u32(&largest, 0, &mut indices).await.unwrap();
        let mut out = TopK {
            ids: b.buffer(Element::U32, count * capacity).unwrap(),
            values: b.buffer(Element::F32, count * capacity).unwrap(),
            found: b.buffer(Element::U32, count).unwrap(),
            capacity,
        };
        b.top_k(&x, count, width, k, out.as_mut()).unwrap();
        let (mut ids, mut found) = (vec![0; count * capacity], vec![0; count]);
        b.read_u32(&out.ids, 0, &mut ids).await.unwrap();
        b.read_u32(&out.found, 0, &mut found).await.unwrap();
        let values = read(b, &out.values, count * capacity).await;
        let rows = found.iter().enumerate().map(|(row, &found)| {
            // If there is no room for all, the contents are undefined.
            let len = if found as usize <= capacity { found as usize } else { 0 };
            let at = row * capacity..row * capacity + len;
            let mut pairs: Vec<(u32, u32)> =
                ids[at.clone()].iter().zip(&values[at]).map(|(&id, value)| (id, value.to_bits())).collect();
            pairs.sort_unstable();
            (found, pairs)
        });
        (indices, rows.collect())
    }
    let Some(mut gpu) = gpu().await else { return };
    let (mut cpu, mut random) = (CpuBackend::new(), Random::new(5));
    for (count, width) in [(1, 1), (3, 7), (2, 255), (2, 257), (5, 2048), (1, 151_936), (MANY_ROWS, 2)] {
        for k in some_of_many(count, &[1, 2, 40, 1024]).iter().map(|&k| width.min(k)) {
            let mut x = random.floats(count * width);
            // Coarse values in some rows, so that many are equal.
            for (i, value) in x.iter_mut().enumerate() {
                match i / width % 3 {
                    1 => *value = (*value * 20.0).round(),
                    2 => *value = (*value * 2.0).round() * 0.0,
                    _ => {}
                }
            }
            if count * width > 2 {
                for broken in [f32::NEG_INFINITY, f32::INFINITY, f32::NAN, -f32::NAN] {
                    if random.below(3) == 0 {
                        let at = random.below(x.len());
                        x[at] = broken;
                    }
                }
            }
            assert_eq!(
                run(&mut gpu, &x, width, k).await,
                run(&mut cpu, &x, width, k).await,
                "{count} x {width}, {k}"
            );
        }
    }
}

pub(super) async fn gram_agrees() {
    /// Relative to the sum of magnitudes. Measured 2e-7.
    const TOLERANCE: f64 = 1e-6;
    let Some(mut gpu) = gpu().await else { return };
    let (mut cpu, mut random) = (CpuBackend::new(), Random::new(6));
    for (count, cols, columns) in [(1, 1, 0..1), (7, 33, 5..33), (40, 129, 64..129), (100, 64, 0..64)] {
        // Two batches of tokens accumulate.
        let runs = [random.floats(count * cols), random.floats(count * cols)];
        async fn run<B: Backend>(
            b: &mut B,
            runs: &[Vec<f32>],
            cols: usize,
            columns: std::ops::Range<usize>,
        ) -> Vec<f32> {
            let len = columns.len() * cols;
            let mut gram = zeros(b, len);
            for x in runs {
                let count = x.len() / cols;
                let x = buffer(b, x);
                b.gram(&x, count, cols, columns.clone(), &mut gram).unwrap();
            }
            read(b, &gram, len).await
        }
        let gram = run(&mut gpu, &runs, cols, columns.clone()).await;
        let tokens = || runs.iter().flat_map(|run| run.chunks_exact(cols));
        let expected: Vec<(f64, f64)> = columns
            .clone()
            .flat_map(|i| (0..cols).map(move |j| (i, j)))
            .map(|(i, j)| {
                let products = tokens().map(|x| f64::from(x[i]) * f64::from(x[j]));
                products.fold((0.0, 0.0), |(sum, size), p| (sum + p, size + p.abs()))
            })
            .collect();
        assert!(worst(&gram, &expected) < TOLERANCE, "{count} x {cols}");
        let twin = run(&mut cpu, &runs, cols, columns.clone()).await;
        // The CPU does not compute elements below the diagonal.
        for (index, (&found, &twin)) in gram.iter().zip(&twin).enumerate() {
            if index % cols >= columns.start + index / cols {
                let error = worst(&[found], &[(f64::from(twin), expected[index].1)]);
                assert!(error < TOLERANCE, "{count} x {cols}: the CPU differs");
            }
        }
    }
}

pub(super) async fn what_does_not_fit_is_an_error() {
    let Some(mut gpu) = gpu().await else { return };
    let shape = AttentionShape { heads: 2, kv_heads: 1, head_dim: 4, capacity: 3 };
    let mut qkv = zeros(&mut gpu, 4 * shape.qkv_width());
    let rope = zeros(&mut gpu, 8);
    let mut cache = KvLayer { keys: zeros(&mut gpu, 12), values: zeros(&mut gpu, 12) };
    let mut append = |count, past| {
        let segments = [Segment { count, past, ..Segment::causal(0, 0) }];
        let result = gpu.rope_and_append_kv(&mut qkv, &segments, &shape, &rope, None, cache.as_mut());
        result.unwrap_err().to_string()
    };
    assert_eq!(append(2, 2), "rope_and_append_kv: 2 tokens after 2 do not fit a cache of 3 positions");
    assert_eq!(append(1, 2), "rope_and_append_kv: rope needs 12 elements but the buffer holds 8");
    let wide = AttentionShape { heads: 1, kv_heads: 1, head_dim: 258, capacity: 1 };
    let qkv = zeros(&mut gpu, wide.qkv_width());
    let cache = KvLayer { keys: zeros(&mut gpu, 258), values: zeros(&mut gpu, 258) };
    let mut out = zeros(&mut gpu, 258);
    let error = gpu.attention(&qkv, &[Segment::causal(0, 1)], &wide, cache.as_ref(), &mut out).unwrap_err();
    assert_eq!(error.code(), crate::error::ErrorCode::UnsupportedModel);
}
