//! Backward steps on the CPU, one file each: hand-written derivatives, summed in a fixed order.

mod attention;
mod embed;
mod gate;
mod linear;
mod loss;
mod optimizer;
mod rms_norm;
mod rope;
#[cfg(test)]
mod testing;

use super::{CpuBackend, CpuBuffer, CpuWeight};
use crate::backend::{BackwardStep, Master, Norm, PartGradient, TrainOps};
use crate::error::Result;
pub(super) use linear::LinearBuffers;

impl TrainOps for CpuBackend {
    fn run_backward(&mut self, step: BackwardStep<'_, CpuBuffer, CpuWeight>) -> Result<()> {
        let workers = &self.workers;
        match step {
            BackwardStep::Linear { x, dy, count, weight, dx, parts } => {
                let cols = weight.cols;
                let gradients = parts.into_iter().map(|part| gradient(part, cols)).collect();
                let (x, dy) = (x.f32(count * cols), dy.f32(count * weight.rows));
                let context = linear::MatmulContext { isa: self.isa, workers, split: self.split.as_mut() };
                linear::linear(context, &mut self.kept, x, dy, weight, dx.f32_mut(count * cols), gradients)?;
            }
            BackwardStep::RmsNorm { x, dy, count, norm, dx, dweight } => {
                let Norm { weight, width, epsilon } = norm;
                let (x, dy, dx) = (x.f32(count * width), dy.f32(count * width), dx.f32_mut(count * width));
                rms_norm::rms_norm(workers, x, dy, weight.f32(width), epsilon, dx, dweight.f32_mut(width));
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
                rope::rope(workers, dx.f32_mut(len), segments, &shape, rope.f32(positions * dim), norms);
            }
            BackwardStep::Embed { tokens, dx, count, rows, width, dtable } => {
                let (dx, dtable) = (dx.f32(count * width), dtable.f32_mut(rows * width));
                embed::embed(tokens.u32(count), dx, width, dtable)?;
            }
            BackwardStep::CrossEntropy { logits, targets, count, vocabulary, share, dlogits, losses } => {
                let len = count * vocabulary;
                let (logits, targets) = (logits.f32(len), targets.u32(count));
                let predictions = loss::Predictions { logits, targets, vocabulary, share };
                predictions.cross_entropy(workers, dlogits.f32_mut(len), losses.f32_mut(count))?;
            }
            BackwardStep::Distill {
                logits,
                teacher,
                targets,
                count,
                vocabulary,
                temperature,
                share,
                dlogits,
                losses,
            } => {
                let len = count * vocabulary;
                let (logits, targets) = (logits.f32(len), targets.u32(count));
                let predictions = loss::Predictions { logits, targets, vocabulary, share };
                let (teacher, dlogits) = (teacher.f32(len), dlogits.f32_mut(len));
                predictions.divergence(workers, teacher, temperature, dlogits, losses.f32_mut(count));
            }
            BackwardStep::LearnedScales { weight, scales, grid, dweight, dscales } => {
                let (len, scaled) = (grid.rows * grid.cols, grid.scales());
                let weight = match weight {
                    Master::Single(weight) => Master::Single(weight.bits()),
                    Master::Half(weight) => Master::Half(weight.bits()),
                };
                let (dweight, dscales) = (dweight.f32_mut(len), dscales.f32_mut(scaled));
                optimizer::learned_scales(workers, weight, scales.f32(scaled), grid, dweight, dscales);
            }
            BackwardStep::SumOfSquares { x, len, out } => {
                out.f32_mut(1)[0] = optimizer::sum_of_squares(workers, x.f32(len)) as f32;
            }
            BackwardStep::AdamW { value, gradient, moments: (context, squares), len, update } => {
                let value = match value {
                    Master::Single(value) => Master::Single(&mut value.bits_mut()[..len]),
                    Master::Half(value) => Master::Half(&mut value.bits_mut()[..len.div_ceil(2)]),
                };
                let moments = (context.f32_mut(len), squares.f32_mut(len));
                optimizer::adamw(workers, value, gradient.f32(len), moments, update);
            }
        }
        Ok(())
    }
}

fn gradient(part: PartGradient<'_, CpuBuffer>, cols: usize) -> linear::Gradient<'_> {
    let PartGradient { rows, weight, bias } = part;
    linear::Gradient { weight: weight.f32_mut(rows * cols), bias: bias.map(|bias| bias.f32_mut(rows)) }
}
