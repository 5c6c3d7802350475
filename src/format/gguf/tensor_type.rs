//! The element types of GGUF tensors: their numbers, names and block sizes.

use std::fmt;

/// Number, name, elements per block and bytes per block, from ggml's `ggml.h` and `ggml-common.h`.
const TABLE: [(u32, &str, u64, u64); 32] = [
    (0, "F32", 1, 4),
    (1, "F16", 1, 2),
    (2, "Q4_0", 32, 18),
    (3, "Q4_1", 32, 20),
    (6, "Q5_0", 32, 22),
    (7, "Q5_1", 32, 24),
    (8, "Q8_0", 32, 34),
    (9, "Q8_1", 32, 36),
    (10, "Q2_K", 256, 84),
    (11, "Q3_K", 256, 110),
    (12, "Q4_K", 256, 144),
    (13, "Q5_K", 256, 176),
    (14, "Q6_K", 256, 210),
    (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66),
    (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98),
    (19, "IQ1_S", 256, 50),
    (20, "IQ4_NL", 32, 18),
    (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82),
    (23, "IQ4_XS", 256, 136),
    (24, "I8", 1, 1),
    (25, "I16", 1, 2),
    (26, "I32", 1, 4),
    (27, "I64", 1, 8),
    (28, "F64", 1, 8),
    (29, "IQ1_M", 256, 56),
    (30, "BF16", 1, 2),
    (34, "TQ1_0", 256, 54),
    (35, "TQ2_0", 256, 66),
    (39, "MXFP4", 32, 17),
];

/// An element type that ggml defines. `layout` decides which of them are decoded.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TensorType(u32);

#[allow(missing_docs, reason = "the names are the documentation")]
impl TensorType {
    pub const F32: Self = Self(0);
    pub const F16: Self = Self(1);
    pub const Q4_0: Self = Self(2);
    pub const Q4_1: Self = Self(3);
    pub const Q5_0: Self = Self(6);
    pub const Q5_1: Self = Self(7);
    pub const Q8_0: Self = Self(8);
    pub const Q4_K: Self = Self(12);
    pub const Q6_K: Self = Self(14);
    pub const IQ4_NL: Self = Self(20);
    pub const BF16: Self = Self(30);
    pub const TQ1_0: Self = Self(34);
    pub const TQ2_0: Self = Self(35);
}

impl TensorType {
    /// Every type that ggml defines.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|(number, ..)| Self(*number))
    }

    /// The type with this number in files, if ggml defines one.
    pub fn from_number(number: u32) -> Option<Self> {
        TABLE.iter().any(|(known, ..)| *known == number).then_some(Self(number))
    }

    /// The type's number in files.
    pub fn number(self) -> u32 {
        self.0
    }

    fn row(self) -> &'static (u32, &'static str, u64, u64) {
        TABLE.iter().find(|(number, ..)| *number == self.0).expect("only numbers of the table are types")
    }

    /// ggml's name: `Q4_0`.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// Elements per block; 1 for types without blocks.
    pub fn block_elements(self) -> u64 {
        self.row().2
    }

    /// Bytes per block.
    pub fn block_bytes(self) -> u64 {
        self.row().3
    }

    /// Bytes of a row of `elements`; `None` if they are not whole blocks or the product overflows.
    pub fn row_bytes(self, elements: u64) -> Option<u64> {
        if !elements.is_multiple_of(self.block_elements()) {
            return None;
        }
        (elements / self.block_elements()).checked_mul(self.block_bytes())
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Debug for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_named_types_are_those_of_the_table() {
        for (value, name) in [
            (TensorType::F32, "F32"),
            (TensorType::F16, "F16"),
            (TensorType::Q4_0, "Q4_0"),
            (TensorType::Q4_1, "Q4_1"),
            (TensorType::Q5_0, "Q5_0"),
            (TensorType::Q5_1, "Q5_1"),
            (TensorType::Q8_0, "Q8_0"),
            (TensorType::Q4_K, "Q4_K"),
            (TensorType::Q6_K, "Q6_K"),
            (TensorType::BF16, "BF16"),
            (TensorType::TQ1_0, "TQ1_0"),
            (TensorType::TQ2_0, "TQ2_0"),
        ] {
            assert_eq!(value.name(), name);
            assert_eq!(TensorType::from_number(value.number()), Some(value));
        }
        assert_eq!(TensorType::from_number(4), None);
        assert_eq!(TensorType::Q4_K.row_bytes(512), Some(288));
        assert_eq!(TensorType::Q4_K.row_bytes(128), None);
        assert_eq!(TensorType::F32.row_bytes(u64::MAX), None);
    }
}
