//! Token embeddings: rows of a table.

use super::parallel::Workers;
use super::weight::CpuWeight;
use crate::error::{Error, Result};

/// `out[t, :] = table[tokens[t], :]`; `out` is `[tokens, cols]`.
///
/// # Errors
/// `invalid_argument` for a token without a row in the table.
pub(super) fn embed(workers: &Workers, tokens: &[u32], table: &CpuWeight, out: &mut [f32]) -> Result<()> {
    let part = &table.parts[0];
    if let Some(token) = tokens.iter().find(|&&token| token as usize >= part.rows) {
        return Err(Error::invalid_argument(format!(
            "token {token} is outside the embedding table of {} rows",
            part.rows
        )));
    }
    workers.run_chunks(out, table.cols, out_work(tokens.len(), table.cols), |t, out| {
        part.dequantize_row(tokens[t] as usize, out);
    });
    Ok(())
}

fn out_work(count: usize, width: usize) -> usize {
    count.saturating_mul(width)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{
        Matrix, Random, backend, formats, is_affine, load, read, reordered, u32_buffer,
    };
    use crate::backend::{Backend, DeviceOps, Element};

    #[test]
    fn rows_of_every_format_come_out_with_one_rounding() {
        let mut random = Random::new(1);
        let (rows, cols) = (11, 172);
        let tokens = [3, 0, 10, 3];
        for format in formats() {
            let mut matrix = Matrix::random(&mut random, rows, cols, format);
            if is_affine(&format) && random.below(2) == 1 {
                matrix = reordered(&mut random, &matrix);
            }
            let mut backend = backend(2, true);
            let table = load(&mut backend, &[(&matrix, rows)], cols, None, &[None]);
            let ids = u32_buffer(&mut backend, &tokens);
            let mut out = backend.buffer(Element::F32, tokens.len() * cols).unwrap();
            backend.embed(&ids, tokens.len(), &table, &mut out).unwrap();
            for (i, found) in read(&mut backend, &out).into_iter().enumerate() {
                let expected = matrix.value(tokens[i / cols] as usize, i % cols, cols);
                assert_eq!(found, expected as f32, "{format:?} element {i}");
            }
        }
    }

    #[test]
    fn a_token_without_a_row_is_named() {
        let mut random = Random::new(2);
        let matrix = Matrix::random(&mut random, 4, 8, formats()[0]);
        let mut backend = backend(1, true);
        let table = load(&mut backend, &[(&matrix, 4)], 8, None, &[None]);
        let ids = u32_buffer(&mut backend, &[3, 4]);
        let mut out = backend.buffer(Element::F32, 16).unwrap();
        let error = backend.embed(&ids, 2, &table, &mut out).unwrap_err();
        assert_eq!(error.to_string(), "embed: token 4 is outside the embedding table of 4 rows");
        let error = backend.embed(&ids, 3, &table, &mut out).unwrap_err();
        assert_eq!(error.to_string(), "embed: tokens needs 3 elements but the buffer holds 2");
    }
}
