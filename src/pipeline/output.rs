//! The output of a job: its plan, the origin of each tensor, and the writing loop.
//!
//! Quantizing, converting and dequantizing implement [`Job`]: they plan the tensors and produce the matrices. A
//! safetensors folder and a GGUF file are both a [`place::Output`].

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

/// Elements dequantized at a time.
const CHUNK_ELEMENTS: usize = 1 << 20;

/// The plan of an output.
pub(super) struct OutputPlan {
    /// The layout of packed matrices, which also decides between folder and file. `None`: a folder without packed
    /// matrices.
    pub layout: Option<TargetLayout>,
    /// The phase in progress reports.
    pub phase: &'static str,
    /// The last file of a folder.
    pub written_last: &'static str,
    /// Changed keys of config.json.
    pub changes: Vec<(&'static str, Value)>,
    /// The `quantization_config` of config.json.
    pub quantization_config: Option<Value>,
    /// The tensors in the order of a GGUF file. safetensors orders them itself.
    pub tensors: Vec<Tensor>,
}

/// A tensor of the output.
pub(super) struct Tensor {
    /// Its Hugging Face name.
    pub name: String,
    /// Type and shape. Blocks are rows of bytes.
    pub info: TensorInfo,
    /// The form of its values.
    pub form: Form,
    /// Its origin.
    pub origin: Origin,
}

/// The origin of an output tensor.
pub(super) enum Origin {
    /// A source tensor, possibly in another form.
    Copy {
        /// Its name in the source.
        tensor: String,
        /// Whether the form is tentative: if it cannot hold a value, another one replaces it.
        tentative: bool,
    },
    /// One of the layout's tensors for the job's matrix with this index and format.
    Pieces(usize, PackedFormat),
    /// The dequantized rows of the job's matrix with this index, rounded.
    Rows(usize),
}

impl Tensor {
    /// A source tensor in another form.
    pub fn copied(name: &str, info: TensorInfo, form: Form, from: &str, tentative: bool) -> Self {
        Self {
            name: name.to_owned(),
            info,
            form,
            origin: Origin::Copy { tensor: from.to_owned(), tentative },
        }
    }

    /// The rows of the matrix of `module`, rounded to `form`.
    pub fn rows(module: &str, (rows, cols): (usize, usize), form: Form, index: usize) -> Self {
        let info = form.info(rows, cols);
        Self { name: format!("{module}.weight"), info, form, origin: Origin::Rows(index) }
    }

    /// The tensors of the matrix of `module` in `layout`.
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

/// A transformation of a checkpoint.
pub(super) trait Job {
    /// Plans the output. `wide` names source tensors with values beyond half precision, as far as known. It is called
    /// again when another one is found.
    fn plan(&mut self, wide: &BTreeSet<String>) -> Result<OutputPlan>;

    /// The module of a matrix.
    fn module(&self, index: usize) -> &str;

    /// Produces a matrix.
    async fn make(&mut self, index: usize, control: &dyn Control) -> Result<OutputMatrix>;

    /// The changed values of a source vector. `None`: unchanged.
    async fn changed_vector(&self, _tensor: &str) -> Result<Option<Vec<f32>>> {
        Ok(None)
    }
}

/// A matrix to be written.
pub(super) struct OutputMatrix {
    /// The matrix in the layout's form.
    pub tensor: QuantizedTensor,
    /// What that form loses, in words.
    pub loss: Option<String>,
    /// The largest difference that it makes to a weight.
    pub difference: f32,
}

/// Results of the writing loop.
#[derive(Default)]
pub(super) struct Written {
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Bytes of the packed matrices.
    packed_bytes: u64,
    packed_weights: u64,
    /// Losses by module.
    pub losses: Vec<(String, String)>,
    /// The largest weight difference by module. Matrices that are copied unchanged have none.
    pub differences: BTreeMap<String, f32>,
}

impl Written {
    /// Mean bits per weight of the packed matrices, including scales and zero points; 0 without any.
    pub fn bits_per_weight(&self) -> f64 {
        self.packed_bytes as f64 * 8.0 / self.packed_weights.max(1) as f64
    }
}

/// Writes everything except the last file.
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
            // The header with the type is already written, so writing starts again. Few models have such a tensor, and
            // checking beforehand would read it twice for every model.
            Err(too_wide) => wide.insert(too_wide),
        };
    }
}

/// The writing loop. The inner error is a source tensor that does not fit its tentative form.
async fn write_tensors(
    job: &mut impl Job,
    plan: &OutputPlan,
    checkpoint: &Checkpoint,
    output: &mut Output<'_>,
    control: &dyn Control,
) -> Result<Result<Written, String>> {
    let by_name = sort::map(plan.tensors.iter().map(|tensor| (tensor.name.as_str(), tensor)));
    let mut written = Written::default();
    // Parts of a matrix that are written later, mostly scales.
    let mut waiting: HashMap<String, Vec<u8>> = HashMap::new();
    let order: Vec<String> = output.order(plan);
    for (done, name) in order.iter().enumerate() {
        let (done, total) = (done as u64, order.len() as u64);
        control.progress(&Progress { phase: plan.phase, done, total, item: name });
        let tensor = by_name[name.as_str()];
        written.bytes += tensor.bytes();
        match &tensor.origin {
            Origin::Copy { tensor: from, tentative } => {
                let mut copying = Copying::new(checkpoint.store(), from, tensor, *tentative)?;
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
    let OutputMatrix { tensor, loss, difference } = job.make(index, control).await?;
    let module = job.module(index);
    let layout = plan.layout.expect("only layouts of packed matrices plan pieces");
    written.packed_bytes += layout.bytes_of(&tensor);
    written.packed_weights += tensor.rows() as u64 * tensor.cols() as u64;
    written.losses.extend(loss.map(|loss| (module.to_owned(), loss)));
    written.differences.insert(module.to_owned(), difference);
    layout.encode(module, tensor, format)
}

/// Writes the dequantized rows of a packed matrix, and returns the largest rounding difference.
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

/// The largest difference between weights of two matrices of one shape.
pub(super) fn distance(a: &QuantizedTensor, b: &QuantizedTensor) -> f32 {
    let (mut ours, mut theirs) = (vec![0.0; a.cols()], vec![0.0; b.cols()]);
    (0..a.rows()).fold(0.0, |largest, row| {
        a.decode_rows(row..row + 1, &mut ours);
        b.decode_rows(row..row + 1, &mut theirs);
        form::farthest(&ours, &theirs).max(largest)
    })
}
