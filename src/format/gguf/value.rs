//! Values of GGUF metadata, and how they are read from and written to a header.

use super::cursor::{Cursor, Stop};
use crate::error::Error;
use crate::format::quoted;

/// The maximum nesting of arrays. Real files do not nest them.
const MAX_NESTING: usize = 4;

/// A metadata value, in the type in which the file stores it.
#[allow(missing_docs, reason = "the names are the documentation")]
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// Values of one type.
#[allow(missing_docs, reason = "the names are the documentation")]
#[derive(Clone, Debug, PartialEq)]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(Vec<String>),
    Arrays(Vec<Array>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

impl Value {
    /// An integer of any type, unless it is negative; `None` for other values.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::U8(v) => Some(v.into()),
            Self::U16(v) => Some(v.into()),
            Self::U32(v) => Some(v.into()),
            Self::U64(v) => Some(v),
            Self::I8(v) => v.try_into().ok(),
            Self::I16(v) => v.try_into().ok(),
            Self::I32(v) => v.try_into().ok(),
            Self::I64(v) => v.try_into().ok(),
            _ => None,
        }
    }

    /// A floating-point number.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            // Converted through the shortest decimal of this f32: 1e-5 stays 1e-5. Through JSON, whose parser is linked
            // anyway: the standard library's parser adds 10 kB of tables to a WebAssembly module.
            Self::F32(v) => serde_json::from_slice(&serde_json::to_vec(&v).ok()?).ok(),
            Self::F64(v) => Some(v),
            _ => None,
        }
    }

    /// A boolean.
    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            Self::Bool(v) => Some(v),
            _ => None,
        }
    }

    /// A string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(v) => Some(v),
            _ => None,
        }
    }

    /// An array.
    pub fn as_array(&self) -> Option<&Array> {
        match self {
            Self::Array(v) => Some(v),
            _ => None,
        }
    }

    /// The number of its type in files.
    fn type_number(&self) -> u32 {
        match self {
            Self::U8(_) => 0,
            Self::I8(_) => 1,
            Self::U16(_) => 2,
            Self::I16(_) => 3,
            Self::U32(_) => 4,
            Self::I32(_) => 5,
            Self::F32(_) => 6,
            Self::Bool(_) => 7,
            Self::String(_) => 8,
            Self::Array(_) => 9,
            Self::U64(_) => 10,
            Self::I64(_) => 11,
            Self::F64(_) => 12,
        }
    }

    /// Reads a type number and a value of that type.
    pub(super) fn read(cursor: &mut Cursor<'_>) -> Result<Self, Stop> {
        Ok(match cursor.u32()? {
            0 => Self::U8(u8::from_le_bytes(cursor.bytes()?)),
            1 => Self::I8(i8::from_le_bytes(cursor.bytes()?)),
            2 => Self::U16(u16::from_le_bytes(cursor.bytes()?)),
            3 => Self::I16(i16::from_le_bytes(cursor.bytes()?)),
            4 => Self::U32(cursor.u32()?),
            5 => Self::I32(i32::from_le_bytes(cursor.bytes()?)),
            6 => Self::F32(f32::from_le_bytes(cursor.bytes()?)),
            7 => Self::Bool(bool_of(cursor.bytes()?)?),
            8 => Self::String(cursor.string()?),
            9 => Self::Array(Array::read(cursor, 1)?),
            10 => Self::U64(cursor.u64()?),
            11 => Self::I64(i64::from_le_bytes(cursor.bytes()?)),
            12 => Self::F64(f64::from_le_bytes(cursor.bytes()?)),
            other => return Err(unknown_type(other)),
        })
    }

    /// Appends the type number and the value.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.type_number().to_le_bytes());
        match self {
            Self::U8(v) => out.push(*v),
            Self::I8(v) => out.extend_from_slice(&v.to_le_bytes()),
            Self::U16(v) => out.extend_from_slice(&v.to_le_bytes()),
            Self::I16(v) => out.extend_from_slice(&v.to_le_bytes()),
            Self::U32(v) => out.extend_from_slice(&v.to_le_bytes()),
            Self::I32(v) => out.extend_from_slice(&v.to_le_bytes()),
            Self::F32(v) => out.extend_from_slice(&v.to_le_bytes()),
            Self::Bool(v) => out.push(u8::from(*v)),
            Self::String(v) => write_string(v, out),
            Self::Array(v) => v.write(out),
            Self::U64(v) => out.extend_from_slice(&v.to_le_bytes()),
            Self::I64(v) => out.extend_from_slice(&v.to_le_bytes()),
            Self::F64(v) => out.extend_from_slice(&v.to_le_bytes()),
        }
    }
}

impl Array {
    /// The number of values.
    pub fn len(&self) -> usize {
        match self {
            Self::U8(v) => v.len(),
            Self::I8(v) => v.len(),
            Self::U16(v) => v.len(),
            Self::I16(v) => v.len(),
            Self::U32(v) => v.len(),
            Self::I32(v) => v.len(),
            Self::F32(v) => v.len(),
            Self::Bool(v) => v.len(),
            Self::String(v) => v.len(),
            Self::Arrays(v) => v.len(),
            Self::U64(v) => v.len(),
            Self::I64(v) => v.len(),
            Self::F64(v) => v.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Strings.
    pub fn as_strings(&self) -> Option<&[String]> {
        match self {
            Self::String(v) => Some(v),
            _ => None,
        }
    }

    /// Single-precision numbers.
    pub fn as_f32s(&self) -> Option<&[f32]> {
        match self {
            Self::F32(v) => Some(v),
            _ => None,
        }
    }

    /// 32-bit integers. Files use both signednesses where only small values occur.
    pub fn as_i32s(&self) -> Option<Vec<i32>> {
        match self {
            Self::I32(v) => Some(v.clone()),
            Self::U32(v) => v.iter().map(|&v| v.try_into().ok()).collect(),
            _ => None,
        }
    }

    fn read(cursor: &mut Cursor<'_>, nesting: usize) -> Result<Self, Stop> {
        let element = cursor.u32()?;
        let count = cursor.u64()?;
        Ok(match element {
            0 => Self::U8(cursor.numbers(count, u8::from_le_bytes)?),
            1 => Self::I8(cursor.numbers(count, i8::from_le_bytes)?),
            2 => Self::U16(cursor.numbers(count, u16::from_le_bytes)?),
            3 => Self::I16(cursor.numbers(count, i16::from_le_bytes)?),
            4 => Self::U32(cursor.numbers(count, u32::from_le_bytes)?),
            5 => Self::I32(cursor.numbers(count, i32::from_le_bytes)?),
            6 => Self::F32(cursor.numbers(count, f32::from_le_bytes)?),
            7 => {
                let bytes = cursor.numbers(count, u8::from_le_bytes)?;
                Self::Bool(bytes.into_iter().map(|byte| bool_of([byte])).collect::<Result<_, _>>()?)
            }
            // The minimum size of a string is its length field; of an array, its type and length fields.
            8 => Self::String(cursor.list(count, 8, Cursor::string)?),
            9 if nesting == MAX_NESTING => {
                return Err(Stop::Refused(Error::invalid_checkpoint(format!(
                    "expected arrays nested at most {MAX_NESTING} deep but found more"
                ))));
            }
            9 => Self::Arrays(cursor.list(count, 12, |cursor| Self::read(cursor, nesting + 1))?),
            10 => Self::U64(cursor.numbers(count, u64::from_le_bytes)?),
            11 => Self::I64(cursor.numbers(count, i64::from_le_bytes)?),
            12 => Self::F64(cursor.numbers(count, f64::from_le_bytes)?),
            other => return Err(unknown_type(other)),
        })
    }

    fn write(&self, out: &mut Vec<u8>) {
        macro_rules! numbers {
            ($number:literal, $values:ident) => {{
                out.extend_from_slice(&u32::to_le_bytes($number));
                out.extend_from_slice(&($values.len() as u64).to_le_bytes());
                for value in $values {
                    out.extend_from_slice(&value.to_le_bytes());
                }
            }};
        }
        match self {
            Self::U8(v) => numbers!(0, v),
            Self::I8(v) => numbers!(1, v),
            Self::U16(v) => numbers!(2, v),
            Self::I16(v) => numbers!(3, v),
            Self::U32(v) => numbers!(4, v),
            Self::I32(v) => numbers!(5, v),
            Self::F32(v) => numbers!(6, v),
            Self::Bool(v) => {
                let bytes: Vec<u8> = v.iter().map(|&v| u8::from(v)).collect();
                numbers!(7, bytes);
            }
            Self::String(v) => {
                out.extend_from_slice(&8u32.to_le_bytes());
                out.extend_from_slice(&(v.len() as u64).to_le_bytes());
                for text in v {
                    write_string(text, out);
                }
            }
            Self::Arrays(v) => {
                out.extend_from_slice(&9u32.to_le_bytes());
                out.extend_from_slice(&(v.len() as u64).to_le_bytes());
                for array in v {
                    array.write(out);
                }
            }
            Self::U64(v) => numbers!(10, v),
            Self::I64(v) => numbers!(11, v),
            Self::F64(v) => numbers!(12, v),
        }
    }
}

/// Appends the length and the bytes of a string.
pub(super) fn write_string(text: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(&(text.len() as u64).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn bool_of([byte]: [u8; 1]) -> Result<bool, Stop> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(Stop::Refused(Error::invalid_checkpoint(format!(
            "expected a boolean, 0 or 1, but found {other}"
        )))),
    }
}

fn unknown_type(number: u32) -> Stop {
    Stop::Refused(Error::invalid_checkpoint(format!(
        "expected a value type from 0 to 12 but found {}",
        quoted(&number.to_string())
    )))
}
