//! Collects the rows of a weight in the CPU backend's layout.

use super::weight::{CpuWeight, Part};
use crate::backend::arrivals::Arrivals;
use crate::backend::{WeightDesc, WeightView};
use crate::error::Result;
use std::ops::Range;

/// The pieces of a weight that have arrived.
pub struct CpuWeightBuilder {
    arrivals: Arrivals,
    parts: Vec<Part>,
}

impl CpuWeightBuilder {
    pub(super) fn new(descs: &[WeightDesc]) -> Result<Self> {
        let arrivals = Arrivals::new(descs)?;
        Ok(Self { arrivals, parts: descs.iter().map(Part::new).collect::<Result<_>>()? })
    }

    pub(super) fn put_rows(&mut self, part: usize, rows: Range<usize>, data: &WeightView<'_>) -> Result<()> {
        let first = self.arrivals.put_rows(part, &rows, data)?;
        let part = &mut self.parts[part];
        match data {
            WeightView::Packed(source) => part.put_packed(rows, source, first),
            WeightView::Dense(bytes) => {
                part.put_dense(rows, bytes);
                Ok(())
            }
        }
    }

    pub(super) fn put_bias(&mut self, part: usize, bias: &[f32]) -> Result<()> {
        self.arrivals.put_bias(part, bias.len())?;
        self.parts[part].bias = Some(bias.to_vec());
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<CpuWeight> {
        self.arrivals.finish()?;
        self.parts.iter_mut().try_for_each(Part::finish)?;
        Ok(CpuWeight { cols: self.arrivals.cols, rows: self.arrivals.rows, parts: self.parts })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::backend;
    use super::*;
    use crate::backend::{DeviceOps, Element, WeightFormat};
    use crate::dtype::DType;
    use crate::quant::{
        ActivationGrid, Activations, Bits, Granularity, PackedTensor, QuantizedTensor, Scales, Scheme,
    };
    use crate::task::block_on;
    use half::f16;

    fn desc(rows: usize, cols: usize, bias: bool) -> WeightDesc {
        let format = WeightFormat::Dense(DType::F32);
        WeightDesc {
            rows,
            cols,
            format,
            activations: Activations::F32,
            grid: ActivationGrid::default(),
            bias,
        }
    }

    #[test]
    fn missing_repeated_and_misshapen_pieces_are_errors() {
        let mut backend = backend(1, true);
        let mut builder = backend.begin_weight(&[desc(2, 3, true), desc(4, 3, false)]).unwrap();
        let zeros = [0; 48];
        let mut put = |builder: &mut CpuWeightBuilder, part, rows: Range<usize>, bytes| {
            let view = WeightView::Dense(&zeros[..bytes]);
            backend.put_rows(builder, part, rows, view).map_err(|error| error.to_string())
        };
        put(&mut builder, 0, 0..2, 24).unwrap();
        put(&mut builder, 1, 2..4, 24).unwrap();
        let refused = [
            (put(&mut builder, 1, 3..4, 12), "row 3 of matrix 1 came twice"),
            (put(&mut builder, 1, 0..1, 11), "expected 1 rows of 3 elements of 4 bytes but found 11 bytes"),
            (put(&mut builder, 1, 3..5, 24), "rows 3..5 are outside matrix 1 of 4 rows"),
            (put(&mut builder, 2, 0..1, 12), "the weight has 2 matrices, no number 2"),
        ];
        for (result, message) in refused {
            assert_eq!(result, Err(message.to_owned()));
        }
        put(&mut builder, 1, 0..1, 12).unwrap();
        let error = backend.put_bias(&mut builder, 1, &[0.0; 4]).unwrap_err();
        assert_eq!(error.to_string(), "the bias of matrix 1 was not announced");
        let error = backend.put_bias(&mut builder, 0, &[0.0; 4]).unwrap_err();
        assert_eq!(error.to_string(), "expected a bias of 2 elements for matrix 0 but found 4");
        let error = block_on(backend.finish_weight(builder)).err().expect("rows are missing");
        assert_eq!(error.to_string(), "the bias of matrix 0 never came");

        let mut builder = backend.begin_weight(&[desc(4, 3, false)]).unwrap();
        backend.put_rows(&mut builder, 0, 0..2, WeightView::Dense(&zeros[..24])).unwrap();
        let error = block_on(backend.finish_weight(builder)).err().expect("rows are missing");
        assert_eq!(error.to_string(), "2 of the 4 rows of matrix 0 never came, the first is row 2");
    }

    #[test]
    fn rows_of_another_scheme_are_an_error() {
        let scheme = |granularity| Scheme::Integer { bits: Bits::Four, granularity, symmetric: true };
        let tensor =
            PackedTensor::new(scheme(Granularity::Channel), 1, 8, vec![0], Scales::F16(vec![f16::ONE]), None)
                .unwrap();
        let mut backend = backend(1, true);
        let format = WeightFormat::Packed(scheme(Granularity::Group(4)).into());
        let mut builder = backend.begin_weight(&[WeightDesc { format, ..desc(1, 8, false) }]).unwrap();
        let tensor = QuantizedTensor::from(tensor);
        let view = WeightView::Packed(tensor.rows_view(0..1));
        let error = backend.put_rows(&mut builder, 0, 0..1, view).unwrap_err();
        assert_eq!(
            error.to_string(),
            "expected 1 rows of 8 columns in int4-g4-sym but found 1 of 8 in int4-channel-sym"
        );
    }

    #[test]
    fn impossible_weights_and_buffers_are_errors() {
        let mut backend = backend(1, true);
        for (rows, cols) in [(0, 1), (1, 0), (usize::MAX / 4, 1), (1, usize::MAX), (usize::MAX, usize::MAX)] {
            assert!(backend.begin_weight(&[desc(rows, cols, false)]).is_err(), "{rows} x {cols}");
        }
        assert!(backend.begin_weight(&[desc(1, 2, false), desc(1, 3, false)]).is_err());
        assert!(backend.begin_weight(&[]).is_err());
        for len in [usize::MAX, usize::MAX / 4] {
            let error = backend.buffer(Element::F32, len).err().expect("no machine has that much");
            assert_eq!(error.code(), crate::error::ErrorCode::OutOfMemory);
        }
    }
}
