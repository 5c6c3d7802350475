//! Checks the data of a weight while it is loaded: every row and every announced bias must come exactly once, as
//! announced.

use super::{WeightDesc, WeightFormat, WeightView};
use crate::error::{Error, Result};
use std::ops::Range;

/// The announced matrices of a weight, and which of their data has arrived.
pub(super) struct Arrivals {
    matrices: Vec<ArrivingMatrix>,
    /// Input features.
    pub(super) cols: usize,
    /// Output features of all matrices.
    pub(super) rows: usize,
}

struct ArrivingMatrix {
    desc: WeightDesc,
    /// The rows that have arrived, as sorted runs.
    here: Vec<Range<usize>>,
    bias: bool,
}

impl Arrivals {
    /// A weight of which nothing has arrived.
    ///
    /// # Errors
    /// `invalid_argument` for no matrix, for matrices with different input widths, and for a number of rows that
    /// overflows.
    pub(super) fn new(descs: &[WeightDesc]) -> Result<Self> {
        let Some(first) = descs.first() else {
            return Err(Error::invalid_argument("a weight needs at least one matrix"));
        };
        if let Some(other) = descs.iter().find(|desc| desc.cols != first.cols) {
            return Err(Error::invalid_argument(format!(
                "matrices of one weight share their input: expected {} columns but found {}",
                first.cols, other.cols
            )));
        }
        let rows = descs
            .iter()
            .try_fold(0usize, |sum, desc| sum.checked_add(desc.rows))
            .ok_or_else(|| Error::invalid_argument("the number of rows of a weight is too large"))?;
        let matrix = |desc: &WeightDesc| ArrivingMatrix { desc: desc.clone(), here: Vec::new(), bias: false };
        Ok(Self { matrices: descs.iter().map(matrix).collect(), cols: first.cols, rows })
    }

    /// The announced matrices.
    #[cfg(feature = "gpu")]
    pub(super) fn descs(&self) -> impl Iterator<Item = &WeightDesc> {
        self.matrices.iter().map(|matrix| &matrix.desc)
    }

    fn matrix(&mut self, part: usize) -> Result<&mut ArrivingMatrix> {
        let count = self.matrices.len();
        self.matrices.get_mut(part).ok_or_else(|| {
            Error::invalid_argument(format!("the weight has {count} matrices, no number {part}"))
        })
    }

    /// Records the arrival of rows. Returns whether they are the first of their matrix.
    ///
    /// # Errors
    /// `invalid_argument` for rows that are outside the matrix, came before, or differ from the announcement.
    pub(super) fn put_rows(
        &mut self,
        part: usize,
        rows: &Range<usize>,
        data: &WeightView<'_>,
    ) -> Result<bool> {
        let ArrivingMatrix { desc, here, .. } = self.matrix(part)?;
        if rows.start > rows.end || rows.end > desc.rows {
            return Err(Error::invalid_argument(format!(
                "rows {}..{} are outside matrix {part} of {} rows",
                rows.start, rows.end, desc.rows
            )));
        }
        let at = here.partition_point(|run| run.end <= rows.start);
        if let Some(run) = here.get(at).filter(|run| run.start < rows.end) {
            let row = run.start.max(rows.start);
            return Err(Error::invalid_argument(format!("row {row} of matrix {part} came twice")));
        }
        as_announced(desc, part, rows.len(), data)?;
        let first = here.is_empty();
        match at.checked_sub(1).and_then(|before| here.get_mut(before)) {
            Some(before) if before.end == rows.start => before.end = rows.end,
            _ => here.insert(at, rows.clone()),
        }
        Ok(first)
    }

    /// Records the arrival of a bias.
    ///
    /// # Errors
    /// `invalid_argument` for one that came before, was not announced, or has another length.
    pub(super) fn put_bias(&mut self, part: usize, len: usize) -> Result<()> {
        let ArrivingMatrix { desc, bias, .. } = self.matrix(part)?;
        if !desc.bias || *bias {
            let why = if desc.bias { "came twice" } else { "was not announced" };
            return Err(Error::invalid_argument(format!("the bias of matrix {part} {why}")));
        }
        if len != desc.rows {
            return Err(Error::invalid_argument(format!(
                "expected a bias of {} elements for matrix {part} but found {len}",
                desc.rows
            )));
        }
        *bias = true;
        Ok(())
    }

    /// Checks that everything has arrived.
    ///
    /// # Errors
    /// `invalid_argument` naming what is missing.
    pub(super) fn finish(&self) -> Result<()> {
        for (part, ArrivingMatrix { desc, here, bias }) in self.matrices.iter().enumerate() {
            let missing = desc.rows - here.iter().map(Range::len).sum::<usize>();
            if missing > 0 {
                let row = here.iter().fold(0, |row, run| if run.start == row { run.end } else { row });
                return Err(Error::invalid_argument(format!(
                    "{missing} of the {} rows of matrix {part} never came, the first is row {row}",
                    desc.rows
                )));
            }
            if desc.bias && !bias {
                return Err(Error::invalid_argument(format!("the bias of matrix {part} never came")));
            }
        }
        Ok(())
    }
}

/// Checks that rows have the announced format and shape.
fn as_announced(desc: &WeightDesc, part: usize, rows: usize, data: &WeightView<'_>) -> Result<()> {
    match (data, desc.format) {
        (WeightView::Dense(bytes), WeightFormat::Dense(dtype)) => {
            let (cols, size) = (desc.cols, dtype.size());
            if cols.checked_mul(size).and_then(|row| row.checked_mul(rows)) == Some(bytes.len()) {
                return Ok(());
            }
            let found = bytes.len();
            Err(Error::invalid_argument(format!(
                "expected {rows} rows of {cols} elements of {size} bytes but found {found} bytes"
            )))
        }
        (WeightView::Packed(source), WeightFormat::Packed(coding)) => {
            let tensor = source.tensor;
            if (tensor.coding(), tensor.cols(), source.rows.len()) == (coding, desc.cols, rows) {
                return Ok(());
            }
            Err(Error::invalid_argument(format!(
                "expected {rows} rows of {} columns in {coding} but found {} of {} in {}",
                desc.cols,
                source.rows.len(),
                tensor.cols(),
                tensor.coding()
            )))
        }
        (WeightView::Packed(_), WeightFormat::Dense(dtype)) => {
            Err(Error::invalid_argument(format!("packed rows were put into matrix {part}, which is {dtype}")))
        }
        (WeightView::Dense(_), WeightFormat::Packed(coding)) => {
            Err(Error::invalid_argument(format!("dense rows were put into matrix {part}, which is {coding}")))
        }
    }
}
