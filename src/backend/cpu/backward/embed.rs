//! Backward step of token embeddings: a token's row accumulates the derivatives of its positions, in their order.

use crate::error::{Error, Result};

/// `dtable[tokens[t], :] += dx[t, :]`.
///
/// # Errors
/// `invalid_argument` for a token without a row in the table.
pub(super) fn embed(tokens: &[u32], dx: &[f32], width: usize, dtable: &mut [f32]) -> Result<()> {
    if width == 0 {
        return Ok(());
    }
    let rows = dtable.len() / width;
    for (&token, dx) in tokens.iter().zip(dx.chunks_exact(width)) {
        let Some(row) = dtable.chunks_exact_mut(width).nth(token as usize) else {
            return Err(Error::invalid_argument(format!(
                "token {token} is outside the embedding table of {rows} rows"
            )));
        };
        for (sum, dx) in row.iter_mut().zip(dx) {
            *sum += dx;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{backend, f32_buffer, read, u32_buffer};
    use crate::backend::{BackwardStep, Train};

    #[test]
    fn a_token_s_row_takes_in_all_its_places() {
        let mut backend = backend(1, true);
        let dx = f32_buffer(&mut backend, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let mut dtable = f32_buffer(&mut backend, &[0.5; 6]);
        for (tokens, expected) in [([2, 0, 2], Ok([3.5, 4.5, 0.5, 0.5, 6.5, 8.5])), ([2, 3, 2], Err(()))] {
            let ids = u32_buffer(&mut backend, &tokens);
            let step = BackwardStep::Embed {
                tokens: &ids,
                dx: &dx,
                count: 3,
                rows: 3,
                width: 2,
                dtable: &mut dtable,
            };
            let result = backend.backward(step);
            match expected {
                Ok(expected) => {
                    result.unwrap();
                    assert_eq!(read(&mut backend, &dtable), expected);
                }
                Err(()) => {
                    let error = result.unwrap_err().to_string();
                    assert_eq!(error, "embed, backward: token 3 is outside the embedding table of 3 rows");
                }
            }
        }
    }
}
