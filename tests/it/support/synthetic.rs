//! Weights derived from tensor names by a hash, as in `tests/interop/synthetic.py`.
//!
//! The golden models use them, so that no weights are committed.

use half::bf16;
use lowbit::internals::dtype::DType;
use lowbit::internals::format::safetensors::{SafetensorsWriter, TensorInfo};
use lowbit::internals::format::sink::{MemorySinkDir, SinkDir, write_whole};
use lowbit::internals::format::source::MemoryDir;
use lowbit::internals::task::block_on;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Name, type, stored shape, and the kind of values.
#[derive(Clone, Debug, Deserialize)]
pub struct Tensor(pub String, pub String, pub Vec<u64>, pub Fill);

/// The kind of a tensor's values.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Fill {
    /// A constant: the scale of a ternary matrix.
    Constant(f32),
    /// `matrix`, `norm` or `ternary`.
    Named(String),
}

/// The 64-bit values of a name: splitmix64, seeded with the name's FNV-1a hash.
pub fn stream(name: &str) -> impl Iterator<Item = u64> {
    let seed = name
        .bytes()
        .fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3));
    (1u64..).map(move |i| {
        let z = seed.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    })
}

/// Token ids below `vocab_size`.
pub fn tokens(name: &str, count: usize, vocab_size: u32) -> Vec<u32> {
    stream(name).take(count).map(|x| (x % u64::from(vocab_size)) as u32).collect()
}

/// In [-1, 1), exact.
fn uniform(x: u64) -> f32 {
    (x >> 40) as f32 * 2f32.powi(-23) - 1.0
}

impl Tensor {
    fn info(&self) -> TensorInfo {
        TensorInfo::new(DType::from_name(&self.1).unwrap(), self.2.clone())
    }

    /// The tensor's bytes; matrices are scaled by `a`.
    fn bytes(&self, a: f32) -> Vec<u8> {
        let Self(name, dtype, shape, fill) = self;
        let values: Box<dyn Iterator<Item = f32>> = match fill {
            Fill::Constant(value) => Box::new(std::iter::repeat(*value)),
            Fill::Named(how) => match how.as_str() {
                "matrix" => Box::new(stream(name).map(move |x| uniform(x) * a)),
                "norm" => Box::new(stream(name).map(|x| 1.0 + uniform(x) * 0.25)),
                "ternary" => return ternary(name, shape),
                other => panic!("{name}: {other}"),
            },
        };
        let values = values.take(shape.iter().product::<u64>() as usize);
        match dtype.as_str() {
            "F32" => values.flat_map(f32::to_le_bytes).collect(),
            "BF16" => values.flat_map(|value| bf16::from_f32(value).to_le_bytes()).collect(),
            other => panic!("{name}: {other}"),
        }
    }
}

/// BitNet bytes: bits `2i` and `2i + 1` of every byte hold code + 1 of row quarter `i`.
fn ternary(name: &str, stored_shape: &[u64]) -> Vec<u8> {
    let quarter = stored_shape.iter().product::<u64>() as usize;
    let codes: Vec<u8> = stream(name).take(4 * quarter).map(|x| (x % 3) as u8).collect();
    (0..quarter).map(|at| (0..4).map(|i| codes[i * quarter + at] << (2 * i)).sum()).collect()
}

/// A checkpoint folder in memory.
pub fn checkpoint(name: &str, config: &[u8], tensors: &[Tensor], a: f32) -> MemoryDir {
    let folder = MemorySinkDir::new(name);
    block_on(async {
        write_whole(&folder, "config.json", config).await?;
        let infos = tensors.iter().map(|tensor| (tensor.0.clone(), tensor.info())).collect();
        let sink = folder.create("model.safetensors").await?;
        let mut writer = SafetensorsWriter::begin(sink, infos, BTreeMap::new()).await?;
        for name in writer.order().to_vec() {
            let tensor = tensors.iter().find(|tensor| tensor.0 == name).unwrap();
            writer.write(&name, &tensor.bytes(a)).await?;
        }
        writer.finish().await
    })
    .unwrap();
    folder.to_dir()
}

#[test]
fn the_hash_is_that_of_the_scripts() {
    let found: Vec<u64> = stream("model.norm.weight").take(3).collect();
    assert_eq!(found, [0x0c76_ce58_e357_20dc, 0x2348_2d69_c64c_1e61, 0x66ed_3454_ea7e_614d]);
}
