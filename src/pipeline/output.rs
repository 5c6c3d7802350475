//! One output: what it holds, where each tensor comes from, and the loop that writes it.
//!
//! Quantizing, converting and dequantizing are a [`Job`] each: they plan the tensors and make the matrices. A folder of
//! safetensors and a GGUF file are both a [`place::Output`].

mod copy;
mod form;
pub(super) mod gguf;
mod place;

pub(super) use copy::f16_holds;
pub(super) use form::Form;
pub(super) use place::{Output, OutputPlace};

use crate::error::{Context, Result};
use crate::format::safetensors::TensorInfo;
use crate::layout::{PackedFormat, TargetLayout};
use crate::model::Checkpoint;
use crate::quant::QuantizedTensor;
use crate::sort;
use crate::task::{self, Control, Progress};
use copy::Copying;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Elements that are dequantized at a time.
const CHUNK_ELEMENTS: usize = 1 << 20;

/// Everything that will be written.
pub(super) struct OutputPlan {
    /// The layout of packed matrices, and whether it is a folder or one file; `None`: a folder without any.
    pub layout: Option<TargetLayout>,
    /// What reports of progress call the work.
    pub phase: &'static str,
    /// The file of a folder that is written last.
    pub written_last: &'static str,
    /// Keys of config.json that become something else.
    pub changes: Vec<(&'static str, Value)>,
    /// What config.json says of packed matrices.
    pub quantization_config: Option<Value>,
    /// In the order of a GGUF file; safetensors has its own.
    pub tensors: Vec<Tensor>,
}

/// A tensor of the output.
pub(super) struct Tensor {
    /// Its name, as Hugging Face has it.
    pub name: String,
    /// Type and shape; blocks are rows of bytes.
    pub info: TensorInfo,
    /// What its values are written as.
    pub form: Form,
    /// Where it comes from.
    pub origin: Origin,
}

/// Where a tensor of the output comes from.
pub(super) enum Origin {
    /// A tensor of the source, perhaps in another form.
    Copy {
        /// Its name there.
        tensor: String,
        /// Nobody has looked yet whether the form can hold all values: another one takes its place where it cannot.
        hoped: bool,
    },
    /// One of the tensors that the layout makes of the job's matrix of this index and form.
    Pieces(usize, PackedFormat),
    /// The rows of that matrix, rounded.
    Rows(usize),
}

impl Tensor {
    /// A tensor of the source, in another form.
    pub fn copied(name: &str, info: TensorInfo, form: Form, from: &str, hoped: bool) -> Self {
        Self { name: name.to_owned(), info, form, origin: Origin::Copy { tensor: from.to_owned(), hoped } }
    }

    /// The rows of the matrix of `module`, rounded to `form`.
    pub fn rows(module: &str, (rows, cols): (usize, usize), form: Form, index: usize) -> Self {
        let info = form.info(rows, cols);
        Self { name: format!("{module}.weight"), info, form, origin: Origin::Rows(index) }
    }

    /// The tensors that `layout` makes of the matrix of `module`.
    pub fn pieces(
        layout: TargetLayout,
        module: &str,
        (rows, cols): (usize, usize),
        format: PackedFormat,
        index: usize,
    ) -> Vec<Self> {
        let planned = layout.planned_tensors(module, rows, cols, format).into_iter();
        let piece = |(name, info): (String, TensorInfo)| Self {
            name,
            form: Form::of_piece(layout, info.dtype, format.coding, cols),
            info,
            origin: Origin::Pieces(index, format),
        };
        planned.map(piece).collect()
    }

    /// Bytes of its data.
    pub fn bytes(&self) -> u64 {
        self.info.byte_len().unwrap_or(0)
    }
}

/// What is done to a checkpoint.
pub(super) trait Job {
    /// Says what will be written. `wide` names tensors of the source that have values beyond half precision, as far as that
    /// is known: it is asked again when another one was met.
    fn plan(&mut self, wide: &BTreeSet<String>) -> Result<OutputPlan>;

    /// The module of a matrix.
    fn module(&self, index: usize) -> &str;

    /// Makes a matrix.
    async fn make(&mut self, index: usize, control: &dyn Control) -> Result<Made>;

    /// What became of a vector of the source; `None` where it stays as it is.
    async fn changed_vector(&self, _tensor: &str) -> Result<Option<Vec<f32>>> {
        Ok(None)
    }
}

/// A matrix on its way into the output.
pub(super) struct Made {
    /// As the layout holds it, where it will be packed.
    pub tensor: QuantizedTensor,
    /// What was lost on the way to that form.
    pub loss: Option<String>,
    /// How far a weight is from what it was before that.
    pub difference: f32,
}

/// What the loop learnt.
#[derive(Default)]
pub(super) struct Written {
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Of the packed matrices alone.
    packed_bytes: u64,
    packed_weights: u64,
    /// What modules have lost.
    pub losses: Vec<(String, String)>,
    /// How far a weight of a module is from the source's; matrices that are copied as they are have no place here.
    pub differences: BTreeMap<String, f32>,
}

impl Written {
    /// Mean bits of a weight in the packed matrices, scales and zero points included; 0 without any.
    pub fn bits_per_weight(&self) -> f64 {
        self.packed_bytes as f64 * 8.0 / self.packed_weights.max(1) as f64
    }
}

/// Writes everything but the file that comes last.
pub(super) async fn write<'a>(
    job: &mut impl Job,
    checkpoint: &Checkpoint,
    place: &OutputPlace<'a>,
    control: &dyn Control,
) -> Result<(Output<'a>, Written)> {
    // For the record.
    checkpoint.store().hash_as_read();
    let mut wide = BTreeSet::new();
    loop {
        let plan = job.plan(&wide)?;
        let mut output = Output::begin(&plan, checkpoint, place).await?;
        match write_tensors(job, &plan, checkpoint, &mut output, control).await? {
            Ok(written) => return Ok((output, written)),
            // The header with its type is written already, so everything begins anew. Few models have such a table, and
            // finding out beforehand would read that of every model twice.
            Err(too_wide) => wide.insert(too_wide),
        };
    }
}

/// The loop. The inner error is a tensor of the source that does not fit the form that was hoped for.
async fn write_tensors(
    job: &mut impl Job,
    plan: &OutputPlan,
    checkpoint: &Checkpoint,
    output: &mut Output<'_>,
    control: &dyn Control,
) -> Result<Result<Written, String>> {
    let by_name = sort::map(plan.tensors.iter().map(|tensor| (tensor.name.as_str(), tensor)));
    let mut written = Written::default();
    // Pieces of a matrix whose turn comes later: scales, mostly.
    let mut waiting: HashMap<String, Vec<u8>> = HashMap::new();
    let order: Vec<String> = output.order(plan);
    for (done, name) in order.iter().enumerate() {
        let (done, total) = (done as u64, order.len() as u64);
        control.progress(&Progress { phase: plan.phase, done, total, item: name });
        let tensor = by_name[name.as_str()];
        written.bytes += tensor.bytes();
        match &tensor.origin {
            Origin::Copy { tensor: from, hoped } => {
                let mut copying = Copying::new(checkpoint.store(), from, tensor, *hoped)?;
                let changed = job.changed_vector(from).await?;
                let copied = copying.write(changed, output, control).await;
                if !copied.context_with(|| checkpoint.name().to_owned())? {
                    return Ok(Err(from.clone()));
                }
                if let (Some(module), Some(difference)) = (name.strip_suffix(".weight"), copying.difference())
                {
                    written.differences.insert(module.to_owned(), difference);
                }
            }
            &Origin::Pieces(index, format) => {
                if !waiting.contains_key(name) {
                    waiting.extend(pieces(job, (index, format), plan, &mut written, control).await?);
                    task::yield_point(control).await?;
                }
                let bytes = waiting.remove(name).expect("a layout writes what it planned");
                output.write(name, &bytes).await?;
            }
            &Origin::Rows(index) => {
                let made = job.make(index, control).await?;
                let largest = write_rows(&made.tensor, tensor, output, control).await;
                let module = job.module(index);
                let largest = largest.context_with(|| format!("module `{module}`"))?;
                written.differences.insert(module.to_owned(), largest);
            }
        }
    }
    output.end_tensors().await?;
    Ok(Ok(written))
}

/// The tensors of a packed matrix.
async fn pieces(
    job: &mut impl Job,
    (index, format): (usize, PackedFormat),
    plan: &OutputPlan,
    written: &mut Written,
    control: &dyn Control,
) -> Result<Vec<(String, Vec<u8>)>> {
    let Made { tensor, loss, difference } = job.make(index, control).await?;
    let module = job.module(index);
    let layout = plan.layout.expect("only layouts of packed matrices plan pieces");
    written.packed_bytes += layout.bytes_of(&tensor);
    written.packed_weights += tensor.rows() as u64 * tensor.cols() as u64;
    written.losses.extend(loss.map(|loss| (module.to_owned(), loss)));
    written.differences.insert(module.to_owned(), difference);
    layout.encode(module, tensor, format)
}

/// Writes the rows of a packed matrix, rounded; the largest difference that makes.
async fn write_rows(
    packed: &QuantizedTensor,
    tensor: &Tensor,
    output: &mut Output<'_>,
    control: &dyn Control,
) -> Result<f32> {
    let rows_at_once = (CHUNK_ELEMENTS / packed.cols()).max(1);
    let (mut values, mut bytes, mut largest) = (Vec::new(), Vec::new(), 0f32);
    for start in (0..packed.rows()).step_by(rows_at_once) {
        let rows = start..packed.rows().min(start + rows_at_once);
        values.resize(rows.len() * packed.cols(), 0.0);
        packed.decode_rows(rows, &mut values);
        bytes.clear();
        tensor.form.encode(&values, &mut bytes)?;
        largest = largest.max(tensor.form.difference(packed.cols(), &values, &bytes)?);
        output.write(&tensor.name, &bytes).await?;
        task::yield_point(control).await?;
    }
    Ok(largest)
}

/// How far the weights of two matrices of one shape lie apart.
pub(super) fn distance(a: &QuantizedTensor, b: &QuantizedTensor) -> f32 {
    let (mut ours, mut theirs) = (vec![0.0; a.cols()], vec![0.0; b.cols()]);
    (0..a.rows()).fold(0.0, |largest, row| {
        a.decode_rows(row..row + 1, &mut ours);
        b.decode_rows(row..row + 1, &mut theirs);
        form::farthest(&ours, &theirs).max(largest)
    })
}
