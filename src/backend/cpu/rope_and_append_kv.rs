//! Rotates q and k (rotary position embedding), then appends k and v to the KV cache.

use super::add_rms_norm::normalize_in_place;
use crate::backend::{AttentionShape, Segment};

/// The weight of a norm, `[head_dim]`, and its epsilon.
pub(super) type HeadNorm<'a> = (&'a [f32], f32);

/// For each row of `qkv`, `[rows, shape.qkv_width()]`: normalizes the heads of q and k (if norms are given), rotates
/// them, and copies k and v to the row's position in the cache, `[kv_heads, capacity, head_dim]`. The rows are those of
/// `segments`.
///
/// Su et al. 2021, in the halves form of GPT-NeoX and Llama: element `i` pairs with `i + head_dim / 2`. `rope` is
/// `[positions, head_dim]`, cosines then sines.
pub(super) fn rope_and_append_kv(
    qkv: &mut [f32],
    segments: &[Segment],
    shape: &AttentionShape,
    rope: &[f32],
    qk_norm: Option<(HeadNorm<'_>, HeadNorm<'_>)>,
    keys: &mut [f32],
    values: &mut [f32],
) {
    let AttentionShape { heads, kv_heads, head_dim, capacity } = *shape;
    let places = segments.iter().flat_map(|segment| {
        (segment.past..segment.end()).map(|position| (position, segment.start + position))
    });
    for (row, (position, place)) in qkv.chunks_exact_mut(shape.qkv_width()).zip(places) {
        let angles = &rope[position * head_dim..(position + 1) * head_dim];
        let (q, kv) = row.split_at_mut(heads * head_dim);
        let (k, v) = kv.split_at_mut(kv_heads * head_dim);
        for head in q.chunks_exact_mut(head_dim) {
            if let Some(((weight, epsilon), _)) = qk_norm {
                normalize_in_place(head, weight, epsilon);
            }
            rotate(head, angles);
        }
        for (h, head) in k.chunks_exact_mut(head_dim).enumerate() {
            if let Some((_, (weight, epsilon))) = qk_norm {
                normalize_in_place(head, weight, epsilon);
            }
            rotate(head, angles);
            let at = (h * capacity + place) * head_dim;
            keys[at..at + head_dim].copy_from_slice(head);
        }
        for (h, head) in v.chunks_exact(head_dim).enumerate() {
            let at = (h * capacity + place) * head_dim;
            values[at..at + head_dim].copy_from_slice(head);
        }
    }
}

/// Rotates each pair `(head[i], head[i + half])` by its angle.
fn rotate(head: &mut [f32], angles: &[f32]) {
    let half = head.len() / 2;
    let (low, high) = head.split_at_mut(half);
    let (cos, sin) = angles.split_at(half);
    for i in 0..half {
        let (a, b) = (low[i], high[i]);
        low[i] = a * cos[i] - b * sin[i];
        high[i] = b * cos[i] + a * sin[i];
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Random, backend, f32_buffer, read};
    use crate::backend::{AttentionShape, Backend, DeviceOps, Element, KvLayer, Norm, QkNorm, Segment};

    /// Largest deviation from the `f64` oracle where values are about 1. Measured 2.6e-7.
    const TOLERANCE: f64 = 1e-6;

    #[test]
    fn rotates_pairs_of_halves_and_fills_the_cache_behind_the_past() {
        let mut random = Random::new(1);
        for (heads, kv_heads, head_dim, count, past, norms) in
            [(1, 1, 2, 1, 0, false), (4, 2, 8, 3, 5, false), (6, 2, 10, 2, 1, true), (3, 3, 64, 4, 0, true)]
        {
            let shape = AttentionShape { heads, kv_heads, head_dim, capacity: past + count + 2 };
            let qkv = random.floats(count * shape.qkv_width());
            let rope = random.floats((past + count) * head_dim);
            let (q_norm, k_norm) = (random.floats(head_dim), random.floats(head_dim));
            let mut backend = backend(2, true);
            let mut buffer = f32_buffer(&mut backend, &qkv);
            let table = f32_buffer(&mut backend, &rope);
            let mut cache = KvLayer {
                keys: backend.buffer(Element::F32, shape.cache_len()).unwrap(),
                values: backend.buffer(Element::F32, shape.cache_len()).unwrap(),
            };
            let mut norm = |weight: &[f32]| Norm {
                weight: f32_buffer(&mut backend, weight),
                width: head_dim,
                epsilon: 1e-6,
            };
            let both = QkNorm { q: norm(&q_norm), k: norm(&k_norm) };
            let given = norms.then_some(both.as_ref());
            backend
                .rope_and_append_kv(
                    &mut buffer,
                    &[Segment::causal(past, count)],
                    &shape,
                    &table,
                    given,
                    cache.as_mut(),
                )
                .unwrap();
            let (found, keys, values) = (
                read(&mut backend, &buffer),
                read(&mut backend, &cache.keys),
                read(&mut backend, &cache.values),
            );
            for t in 0..count {
                let angles = &rope[(past + t) * head_dim..][..head_dim];
                for head in 0..heads + 2 * kv_heads {
                    let at = t * shape.qkv_width() + head * head_dim;
                    let mut x: Vec<f64> = qkv[at..at + head_dim].iter().map(|&v| f64::from(v)).collect();
                    if head < heads + kv_heads {
                        if norms {
                            let mean = x.iter().map(|v| v * v).sum::<f64>() / head_dim as f64;
                            let weight = if head < heads { &q_norm } else { &k_norm };
                            for (x, w) in x.iter_mut().zip(weight) {
                                *x *= f64::from(*w) / (mean + 1e-6).sqrt();
                            }
                        }
                        let half = head_dim / 2;
                        x = (0..head_dim)
                            .map(|i| {
                                let cos = f64::from(angles[i % half]);
                                let sin = f64::from(angles[half + i % half]);
                                if i < half {
                                    x[i] * cos - x[i + half] * sin
                                } else {
                                    x[i] * cos + x[i - half] * sin
                                }
                            })
                            .collect();
                    }
                    for (i, expected) in x.into_iter().enumerate() {
                        let row = |h: usize| (h * shape.capacity + past + t) * head_dim + i;
                        let found = if head < heads {
                            found[at + i]
                        } else if head < heads + kv_heads {
                            keys[row(head - heads)]
                        } else {
                            values[row(head - heads - kv_heads)]
                        };
                        assert!((f64::from(found) - expected).abs() < TOLERANCE, "{found}, not {expected}");
                    }
                }
            }
            assert_eq!(
                values[past * head_dim + head_dim * count..][..head_dim],
                vec![0.0; head_dim],
                "beyond the end"
            );
        }
    }

    #[test]
    fn each_segment_rotates_and_appends_as_it_does_alone() {
        let shape = AttentionShape { heads: 4, kv_heads: 2, head_dim: 6, capacity: 30 };
        // The second sequence of the batch precedes the first one in the cache.
        let segments = [(2, 3, 12), (4, 0, 1), (0, 7, 20), (1, 6, 21)]
            .map(|(count, past, start)| Segment { start, ..Segment::causal(past, count) });
        let mut random = Random::new(3);
        let (qkv, rope) = (random.floats(7 * shape.qkv_width()), random.floats(7 * shape.head_dim));
        let run = |qkv: &[f32], segments: &[Segment]| {
            let mut backend = backend(1, true);
            let mut buffer = f32_buffer(&mut backend, qkv);
            let table = f32_buffer(&mut backend, &rope);
            let mut cache = KvLayer {
                keys: backend.buffer(Element::F32, shape.cache_len()).unwrap(),
                values: backend.buffer(Element::F32, shape.cache_len()).unwrap(),
            };
            backend.rope_and_append_kv(&mut buffer, segments, &shape, &table, None, cache.as_mut()).unwrap();
            [&buffer, &cache.keys, &cache.values].map(|buffer| read(&mut backend, buffer))
        };
        let [rotated, keys, values] = run(&qkv, &segments);
        let mut alone = [Vec::new(), vec![0.0; keys.len()], vec![0.0; values.len()]];
        let mut first = 0;
        for segment in segments {
            let rows = first * shape.qkv_width()..(first + segment.count) * shape.qkv_width();
            // A cache of this sequence alone, at its start.
            let [rotated, keys, values] = run(&qkv[rows], &[Segment { start: 0, ..segment }]);
            alone[0].extend(rotated);
            for (all, one) in alone[1..].iter_mut().zip([keys, values]) {
                for head in 0..shape.kv_heads {
                    for position in segment.past..segment.end() {
                        let from = (head * shape.capacity + position) * shape.head_dim;
                        let to = from + segment.start * shape.head_dim;
                        all[to..to + shape.head_dim].copy_from_slice(&one[from..from + shape.head_dim]);
                    }
                }
            }
            first += segment.count;
        }
        assert_eq!([rotated, keys, values], alone);
    }

    #[test]
    fn a_full_cache_and_a_short_table_are_errors() {
        let shape = AttentionShape { heads: 2, kv_heads: 1, head_dim: 4, capacity: 3 };
        let mut backend = backend(1, true);
        let mut qkv = backend.buffer(Element::F32, 4 * shape.qkv_width()).unwrap();
        let rope = backend.buffer(Element::F32, 8).unwrap();
        let mut cache = KvLayer {
            keys: backend.buffer(Element::F32, shape.cache_len()).unwrap(),
            values: backend.buffer(Element::F32, shape.cache_len()).unwrap(),
        };
        let mut append = |count, past| {
            let segments = [Segment { count, past, ..Segment::causal(0, 0) }];
            let result = backend.rope_and_append_kv(&mut qkv, &segments, &shape, &rope, None, cache.as_mut());
            result.unwrap_err().to_string()
        };
        assert_eq!(append(2, 2), "rope_and_append_kv: 2 tokens after 2 do not fit a cache of 3 positions");
        assert_eq!(append(1, 2), "rope_and_append_kv: rope needs 12 elements but the buffer holds 8");
        assert!(append(1, usize::MAX).contains("do not fit"));
    }
}
