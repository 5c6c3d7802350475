//! Converts packed weights to another scheme: finer groups, other codes, another scale type.
//!
//! Everything except [`round_scales`] is exact.

use super::packed_tensor::{PackedTensor, Scales};
use super::packing;
use super::qparams::ScaleType;
use super::scheme::{Bits, Granularity, Scheme};
use crate::error::{Error, ErrorCode, Result};
use half::{bf16, f16};

/// Ternary codes -1, 0, 1 as 2-bit codes with zero point 2, and a tensor's scale as one for each channel.
///
/// # Errors
/// `unsupported_format` for weights with minimums.
pub fn spread_tensor_scale(tensor: &PackedTensor) -> Result<PackedTensor> {
    let scheme = tensor.scheme();
    let granularity = match scheme.granularity() {
        Granularity::Tensor => Granularity::Channel,
        other => other,
    };
    let (bits, symmetric, shift) = match scheme {
        Scheme::Integer { bits, symmetric, .. } => (bits, symmetric, 0),
        Scheme::Ternary { .. } => (Bits::Two, true, 1),
        Scheme::IntegerMinimum { .. } => {
            return Err(Error::unsupported_format(format!("expected zero points but {scheme} has minimums")));
        }
    };
    let rows = tensor.rows();
    let repeat = if granularity == scheme.granularity() { 1 } else { rows };
    let scales = pick(tensor.scales(), (0..tensor.scales().len() * repeat).map(|index| index / repeat));
    let zero_points = tensor.zero_points().map(|zeros| zeros.iter().flat_map(|&z| vec![z; repeat]).collect());
    let codes = if shift == 0 {
        tensor.codes().to_vec()
    } else {
        let words = scheme.words_per_row(tensor.cols());
        let mut row = vec![0u8; tensor.cols()];
        let mut codes = tensor.codes().to_vec();
        for stream in codes.chunks_exact_mut(words) {
            packing::unpack_row(stream, 2, &mut row);
            row.iter_mut().for_each(|code| *code += shift);
            packing::pack_row(&row, 2, stream);
        }
        codes
    };
    rebuilt(tensor, Scheme::Integer { bits, granularity, symmetric }, codes, scales, zero_points)
}

/// The same weights in groups of `group_size`, each inside one group of `tensor`.
///
/// # Panics
/// When `group_size` does not divide the present one, or one scale spans the whole tensor.
pub fn split_groups(tensor: &PackedTensor, group_size: usize) -> Result<PackedTensor> {
    let Scheme::Integer { bits, granularity, symmetric } = tensor.scheme() else {
        panic!("ternary weights have no groups");
    };
    assert_ne!(granularity, Granularity::Tensor, "one scale for all");
    let (cols, rows) = (tensor.cols(), tensor.rows());
    let old_size = granularity.group_size(cols);
    let finer = Granularity::Group(group_size);
    assert!(old_size.is_multiple_of(group_size) || old_size >= cols, "groups that lie across others");
    let (old, new) = (granularity.groups_per_row(cols), finer.groups_per_row(cols));
    let index = |i: usize| i / new * old + i % new * group_size / old_size;
    let scales = pick(tensor.scales(), (0..rows * new).map(index));
    let zero_points = tensor.zero_points().map(|zeros| (0..rows * new).map(|i| zeros[index(i)]).collect());
    let scheme = Scheme::Integer { bits, granularity: finer, symmetric };
    rebuilt(tensor, scheme, tensor.codes().to_vec(), scales, zero_points)
}

/// Weights as symmetric, if all zero points are in the middle; otherwise `None`.
pub fn as_symmetric(tensor: &PackedTensor) -> Result<Option<PackedTensor>> {
    let Scheme::Integer { bits, granularity, symmetric: false } = tensor.scheme() else { return Ok(None) };
    let in_the_middle = |&zero: &u8| u32::from(zero) == bits.midpoint();
    if !tensor.zero_points().unwrap_or_default().iter().all(in_the_middle) {
        return Ok(None);
    }
    let scheme = Scheme::Integer { bits, granularity, symmetric: true };
    rebuilt(tensor, scheme, tensor.codes().to_vec(), tensor.scales().clone(), None).map(Some)
}

/// Zero points as minimums in single precision, which is exact for 16-bit scales.
pub fn zeros_to_minimums(tensor: &PackedTensor) -> Result<PackedTensor> {
    let zeros = tensor.zero_points().unwrap_or_default().iter().enumerate();
    let minimums = zeros.map(|(index, &zero)| -f32::from(zero) * tensor.scales().get(index)).collect();
    let (scheme, codes) = (tensor.scheme().with_minimums(), tensor.codes().to_vec());
    let (scales, minimums) = (tensor.scales().clone(), Scales::F32(minimums));
    let minimal = PackedTensor::with_minimums(scheme, tensor.rows(), tensor.cols(), codes, scales, minimums)?;
    in_order_of(tensor, minimal)
}

/// The same codes with scales and minimums rounded to another type.
///
/// # Errors
/// `non_finite` for a number beyond the type's range.
pub fn round_scales(tensor: &PackedTensor, scale_type: ScaleType) -> Result<PackedTensor> {
    let rounded = |from: &Scales, what: &str| {
        let mut scales = Scales::with_capacity(scale_type, from.len());
        for index in 0..from.len() {
            let scale = from.get(index);
            scales.push(scale);
            if !scales.get(index).is_finite() {
                return Err(Error::new(
                    ErrorCode::NonFinite,
                    format!("the {what} {scale:e} is out of the range of {}", scale_type.dtype()),
                ));
            }
        }
        Ok(scales)
    };
    let scales = rounded(tensor.scales(), "scale")?;
    let (scheme, rows, cols) = (tensor.scheme(), tensor.rows(), tensor.cols());
    let Some(minimums) = tensor.minimums() else {
        let zeros = tensor.zero_points().map(<[u8]>::to_vec);
        return rebuilt(tensor, scheme, tensor.codes().to_vec(), scales, zeros);
    };
    let minimums = rounded(minimums, "minimum")?;
    let codes = tensor.codes().to_vec();
    in_order_of(tensor, PackedTensor::with_minimums(scheme, rows, cols, codes, scales, minimums)?)
}

/// Whether all scales and minimums are exact in another type.
pub fn scales_fit(tensor: &PackedTensor, scale_type: ScaleType) -> bool {
    let fits = |value: f32| {
        let rounded = match scale_type {
            ScaleType::F16 => f16::from_f32(value).to_f32(),
            ScaleType::BF16 => bf16::from_f32(value).to_f32(),
            ScaleType::F32 => value,
        };
        rounded == value
    };
    let all = |scales: &Scales| (0..scales.len()).all(|index| fits(scales.get(index)));
    all(tensor.scales()) && tensor.minimums().is_none_or(all)
}

fn rebuilt(
    tensor: &PackedTensor,
    scheme: Scheme,
    codes: Vec<u32>,
    scales: Scales,
    zero_points: Option<Vec<u8>>,
) -> Result<PackedTensor> {
    let rebuilt = PackedTensor::new(scheme, tensor.rows(), tensor.cols(), codes, scales, zero_points)?;
    in_order_of(tensor, rebuilt)
}

/// Gives `rebuilt` the column order of `tensor`.
fn in_order_of(tensor: &PackedTensor, rebuilt: PackedTensor) -> Result<PackedTensor> {
    match tensor.column_order() {
        None => Ok(rebuilt),
        Some(order) => rebuilt.with_column_order(order.to_vec()),
    }
}

fn pick(scales: &Scales, indices: impl Iterator<Item = usize>) -> Scales {
    match scales {
        Scales::F16(v) => Scales::F16(indices.map(|i| v[i]).collect()),
        Scales::BF16(v) => Scales::BF16(indices.map(|i| v[i]).collect()),
        Scales::F32(v) => Scales::F32(indices.map(|i| v[i]).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{RtnQuantizer, TernaryQuantizer, dequantize};
    use super::*;

    fn weights(tensor: &PackedTensor) -> Vec<f32> {
        let mut out = vec![0.0; tensor.rows() * tensor.cols()];
        dequantize::rows(tensor, 0..tensor.rows(), &mut out);
        out
    }

    fn random(len: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * i * 31 + i * 7) % 1009) as f32 / 500.0 - 1.0).collect()
    }

    #[test]
    fn the_weights_stay_what_they_are() {
        let (rows, cols) = (5, 48);
        let values = random(rows * cols);
        for (granularity, finer) in
            [(Granularity::Group(24), 8), (Granularity::Channel, 16), (Granularity::Group(32), 16)]
        {
            for symmetric in [true, false] {
                let scheme = Scheme::Integer { bits: Bits::Four, granularity, symmetric };
                let mut quantizer = RtnQuantizer::new(scheme, rows, cols, ScaleType::F32).unwrap();
                quantizer.push_rows(&values).unwrap();
                let order = (0..cols as u32).rev().collect();
                let tensor = quantizer.finish().unwrap().with_column_order(order).unwrap();
                let split = split_groups(&tensor, finer).unwrap();
                assert_eq!(split.scheme().granularity(), Granularity::Group(finer));
                assert_eq!(weights(&split), weights(&tensor), "{scheme}");
            }
        }
        for granularity in [Granularity::Tensor, Granularity::Channel] {
            let mut quantizer = TernaryQuantizer::new(granularity, rows, cols, ScaleType::F16, None).unwrap();
            quantizer.observe_rows(&values).unwrap();
            quantizer.push_rows(&values).unwrap();
            let tensor = quantizer.finish().unwrap();
            let spread = spread_tensor_scale(&tensor).unwrap();
            assert_eq!(spread.scheme().to_string(), "int2-channel-sym");
            assert_eq!(weights(&spread), weights(&tensor));
        }
    }

    #[test]
    fn only_zero_points_in_the_middle_are_symmetric() {
        let scheme = Scheme::Integer { bits: Bits::Two, granularity: Granularity::Channel, symmetric: false };
        let make = |zeros| {
            let scales = Scales::F16(vec![f16::ONE; 2]);
            PackedTensor::new(scheme, 2, 3, vec![0b01_10_11, 0b11_00_01], scales, Some(zeros)).unwrap()
        };
        let middle = make(vec![2, 2]);
        assert_eq!(weights(&as_symmetric(&middle).unwrap().unwrap()), weights(&middle));
        assert!(as_symmetric(&make(vec![2, 1])).unwrap().is_none());
    }

    #[test]
    fn scales_are_rounded_or_refused() {
        let scheme = Scheme::Integer { bits: Bits::Two, granularity: Granularity::Channel, symmetric: true };
        let make = |scale| {
            PackedTensor::new(scheme, 1, 3, vec![0b01_10_11], Scales::F32(vec![scale]), None).unwrap()
        };
        assert!(scales_fit(&make(0.5), ScaleType::F16) && !scales_fit(&make(0.1), ScaleType::F16));
        let rounded = round_scales(&make(-0.1), ScaleType::F16).unwrap();
        assert_eq!(rounded.scales(), &Scales::F16(vec![f16::from_f32(-0.1)]));
        assert_eq!(round_scales(&make(1e6), ScaleType::F16).unwrap_err().code(), ErrorCode::NonFinite);
    }
}
