//! Stub of the matrix unit for targets without it. Its types have no values.

use super::{Block, Region, Step, Terms};
use std::convert::Infallible;

/// Has no values: there is no matrix unit.
#[derive(Clone, Copy)]
pub(in super::super) struct Amx(Infallible);

impl Amx {
    pub(in super::super) fn detect() -> Option<Self> {
        None
    }

    pub(in super::super) fn split_rows(
        self,
        _rows: Region<'_>,
        _factors: Option<&[f32]>,
        _panel: &mut [Step],
        _terms: Terms,
    ) -> usize {
        match self.0 {}
    }

    pub(in super::super) fn split_columns(
        self,
        _columns: Region<'_>,
        _factors: Option<&[f32]>,
        _panel: &mut [Step],
    ) -> usize {
        match self.0 {}
    }

    pub(in super::super) fn turn(self, _panel: &mut [Step], _terms: Terms) {
        match self.0 {}
    }

    pub(in super::super) fn tiles(self) -> Tiles {
        match self.0 {}
    }
}

/// See [`Amx`].
pub(in super::super) struct Tiles(Infallible);

impl Tiles {
    pub(in super::super) fn multiply(
        &self,
        _left: &[Step],
        _right: &[Step],
        _terms: Terms,
        _products: &mut Block,
    ) {
        match self.0 {}
    }
}
