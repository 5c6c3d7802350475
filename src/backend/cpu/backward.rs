//! Backward steps on the CPU, one file each: the derivatives written out, sums in a fixed order. Floor 4.

mod attention;
mod cross_entropy;
mod embed;
mod gate;
mod linear;
mod rms_norm;
mod rope;
#[cfg(test)]
mod testing;

use super::{CpuBackend, CpuBuffer};
use crate::backend::{BackwardStep, Norm, TrainOps};
use crate::error::Result;

impl TrainOps for CpuBackend {
    fn run_backward(&mut self, step: BackwardStep<'_, CpuBuffer>) -> Result<()> {
        let workers = &self.workers;
        match step {
            BackwardStep::Linear { x, dy, columns, count, cols, weight, dx, dweight, dbias } => {
                let len = columns.len * cols;
                let operands = linear::Operands {
                    x: x.f32(count * cols),
                    dy: dy.f32(count * columns.stride),
                    columns,
                    cols,
                    weight: weight.f32(len),
                };
                operands.input(workers, dx.f32_mut(count * cols));
                operands.weight(workers, dweight.f32_mut(len));
                if let Some(dbias) = dbias {
                    operands.bias(dbias.f32_mut(columns.len));
                }
            }
            BackwardStep::RmsNorm { x, dy, count, norm, dx, dweight } => {
                let Norm { weight, width, epsilon } = norm;
                let (x, dy, dx) = (x.f32(count * width), dy.f32(count * width), dx.f32_mut(count * width));
                rms_norm::rms_norm(x, dy, weight.f32(width), epsilon, dx, dweight.f32_mut(width));
            }
            BackwardStep::Gate { gate_up, dy, count, width, activation, dx } => {
                let (gate_up, dx) = (gate_up.f32(count * 2 * width), dx.f32_mut(count * 2 * width));
                gate::gate(workers, gate_up, dy.f32(count * width), width, activation, dx);
            }
            BackwardStep::Attention { qkv, segments, shape, cache, dy, dx } => {
                let rows: usize = segments.iter().map(|segment| segment.count).sum();
                let len = rows * shape.qkv_width();
                let (keys, values) = (cache.keys.f32(shape.cache_len()), cache.values.f32(shape.cache_len()));
                let dy = dy.f32(rows * shape.heads * shape.head_dim);
                attention::attention(
                    workers,
                    qkv.f32(len),
                    segments,
                    &shape,
                    (keys, values),
                    dy,
                    dx.f32_mut(len),
                );
            }
            BackwardStep::Rope { dx, segments, shape, rope, norms } => {
                let rows: usize = segments.iter().map(|segment| segment.count).sum();
                let positions = segments.iter().map(|segment| segment.end()).max().unwrap_or(0);
                let (len, dim) = (rows * shape.qkv_width(), shape.head_dim);
                let norms = norms.map(|norms| rope::HeadNorms {
                    qkv: norms.qkv.f32(len),
                    q: (norms.norms.q.weight.f32(dim), norms.norms.q.epsilon, norms.dq.f32_mut(dim)),
                    k: (norms.norms.k.weight.f32(dim), norms.norms.k.epsilon, norms.dk.f32_mut(dim)),
                });
                rope::rope(dx.f32_mut(len), segments, &shape, rope.f32(positions * dim), norms);
            }
            BackwardStep::Embed { tokens, dx, count, rows, width, dtable } => {
                let (dx, dtable) = (dx.f32(count * width), dtable.f32_mut(rows * width));
                embed::embed(tokens.u32(count), dx, width, dtable)?;
            }
            BackwardStep::CrossEntropy { logits, targets, count, vocabulary, share, dlogits, losses } => {
                let len = count * vocabulary;
                let (logits, dlogits) = (logits.f32(len), dlogits.f32_mut(len));
                let (targets, losses) = (targets.u32(count), losses.f32_mut(count));
                cross_entropy::cross_entropy(logits, targets, vocabulary, share, dlogits, losses)?;
            }
        }
        Ok(())
    }
}
