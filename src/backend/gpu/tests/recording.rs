//! Tests of recording, buffers and errors.

use super::gpu;
use super::operands::{buffer, ids, read, zeros};
#[cfg(test)]
use crate::backend::gpu::{GpuBackend, GpuOptions, Sabotage, adapters};
use crate::backend::{AttentionShape, Backend, DeviceOps, Element, GateActivation, KvLayer, Mask, Segment};
use crate::error::ErrorCode;

pub(super) async fn steps_are_submitted_together_and_each_keeps_its_parameters() {
    let Some(mut gpu) = gpu().await else { return };
    let input = buffer(&mut gpu, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
    let (mut a, mut b) = (zeros(&mut gpu, 4), zeros(&mut gpu, 4));
    let before = (gpu.submissions(), gpu.dispatches().unwrap());
    // The same kernel twice, with different widths.
    gpu.gate(&input, 1, 4, GateActivation::SquaredRelu, &mut a).unwrap();
    gpu.gate(&input, 2, 2, GateActivation::SquaredRelu, &mut b).unwrap();
    assert_eq!(gpu.submissions(), before.0, "nothing is submitted yet");
    assert_eq!(read(&mut gpu, &a, 4).await, [5.0, 24.0, 63.0, 128.0]);
    assert_eq!((gpu.submissions(), gpu.dispatches().unwrap()), (before.0 + 1, before.1 + 2));
    assert_eq!(read(&mut gpu, &b, 4).await, [3.0, 16.0, 175.0, 288.0]);
}

pub(super) async fn writing_waits_for_what_was_recorded_before() {
    let Some(mut gpu) = gpu().await else { return };
    let mut input = buffer(&mut gpu, &[2.0, 10.0]);
    let (mut a, mut b) = (zeros(&mut gpu, 1), zeros(&mut gpu, 1));
    gpu.gate(&input, 1, 1, GateActivation::SquaredRelu, &mut a).unwrap();
    gpu.write_f32(&mut input, &[3.0]).unwrap();
    gpu.gate(&input, 1, 1, GateActivation::SquaredRelu, &mut b).unwrap();
    assert_eq!((read(&mut gpu, &a, 1).await, read(&mut gpu, &b, 1).await), (vec![40.0], vec![90.0]));
}

pub(super) async fn each_step_has_the_segments_that_it_was_recorded_with() {
    let Some(mut gpu) = gpu().await else { return };
    let shape = AttentionShape { heads: 1, kv_heads: 1, head_dim: 2, capacity: 4 };
    let causal = Segment::causal(1, 1);
    let batches: [&[Segment]; 3] = [
        &[Segment { mask: Mask::Full, ..Segment::causal(0, 3) }],
        &[causal, Segment { start: 2, ..causal }, Segment { start: 1, ..causal }],
        &[Segment::causal(1, 3)],
    ];
    let qkv = buffer(&mut gpu, &[0.0; 18]);
    // Equal scores: the output is the mean of the visible values.
    let mut cache = KvLayer {
        keys: zeros(&mut gpu, 8),
        values: buffer(&mut gpu, &[1.0, 0.0, 2.0, 0.0, 3.0, 0.0, 8.0, 0.0]),
    };
    let mut outs = [(); 3].map(|()| zeros(&mut gpu, 6));
    for (segments, out) in batches.into_iter().zip(&mut outs) {
        gpu.attention(&qkv, segments, &shape, cache.as_ref(), out).unwrap();
    }
    // A later write does not overtake them either.
    gpu.write_f32(&mut cache.values, &[9.0; 8]).unwrap();
    for (out, expected) in outs.iter().zip([[2.0, 2.0, 2.0], [1.5, 5.5, 2.5], [1.5, 2.0, 3.5]]) {
        let found = read(&mut gpu, out, 6).await;
        assert_eq!([found[0], found[2], found[4]], expected);
    }
}

pub(super) async fn buffers_that_are_used_again_are_zero() {
    let Some(mut gpu) = gpu().await else { return };
    for round in 0..3 {
        let mut first = zeros(&mut gpu, 1000);
        assert_eq!(read(&mut gpu, &first, 1000).await, vec![0.0; 1000], "round {round}");
        gpu.write_f32(&mut first, &[1.0; 1000]).unwrap();
        let mut part = [0.0; 3];
        gpu.read(&first, 997, &mut part).await.unwrap();
        assert_eq!(part, [1.0; 3]);
    }
}

pub(super) async fn a_reading_has_what_was_there_when_it_began() {
    let Some(mut gpu) = gpu().await else { return };
    let mut values = buffer(&mut gpu, &[1.0, 2.0, 3.0]);
    let numbers = ids(&mut gpu, &[7, 8]);
    let before = gpu.submissions();
    let reading = gpu.begin_read(&[(&numbers, 1..2), (&values, 0..2), (&numbers, 0..0)]).unwrap();
    assert_eq!(gpu.submissions(), before + 1, "one submission for all ranges");
    gpu.write_f32(&mut values, &[4.0; 3]).unwrap();
    let given_up = gpu.begin_read(&[(&values, 0..3)]).unwrap();
    let later = gpu.begin_read(&[(&values, 2..3)]).unwrap();
    drop(given_up);
    assert_eq!(gpu.finish_read(later).await.unwrap(), [4.0f32.to_bits()]);
    assert_eq!(gpu.finish_read(reading).await.unwrap(), [8, 1.0f32.to_bits(), 2.0f32.to_bits()]);
    let error = gpu.begin_read(&[(&numbers, 1..2), (&values, 2..4)]).err().expect("beyond its end");
    assert_eq!(error.to_string(), "read: the source needs 4 elements but the buffer holds 3");
}

pub(super) async fn wrong_operands_and_impossible_sizes_are_errors() {
    let Some(mut gpu) = gpu().await else { return };
    let tokens = ids(&mut gpu, &[1]);
    let mut out = zeros(&mut gpu, 4);
    let error = gpu.gate(&tokens, 1, 1, GateActivation::Silu, &mut out).unwrap_err();
    assert_eq!(error.to_string(), "gate: gate_up must be a buffer of F32 but is one of U32");
    let mut three = zeros(&mut gpu, 3);
    let error = gpu.gate(&out, 1, 3, GateActivation::Silu, &mut three).unwrap_err();
    assert_eq!(error.to_string(), "gate: gate_up needs 6 elements but the buffer holds 4");
    // In WebAssembly the second length is just below 4 GiB.
    for len in [usize::MAX, usize::MAX / 4] {
        let error = gpu.buffer(Element::F32, len).expect_err("no device has that much");
        assert_eq!(error.code(), ErrorCode::OutOfMemory);
    }
    // The errors do not affect later steps.
    assert_eq!(read(&mut gpu, &out, 4).await, [0.0; 4]);
}

#[cfg(test)]
pub(super) async fn an_adapter_that_is_not_there_is_named() {
    let options = GpuOptions { adapter: Some("Voodoo 2".to_owned()), ..GpuOptions::default() };
    let error = GpuBackend::new(&options).await.err().expect("there is no such adapter");
    assert_eq!(error.code(), ErrorCode::NoDevice);
    assert!(error.to_string().starts_with("expected a GPU adapter named `Voodoo 2` but found "), "{error}");
    for adapter in adapters().await {
        println!("{adapter}: {}, bindings of {} bytes", adapter.driver, adapter.max_binding_bytes);
        assert!(!adapter.name.is_empty() && adapter.max_binding_bytes >= 128 << 20);
    }
}

#[cfg(test)]
pub(super) async fn what_goes_wrong_on_a_device_has_its_code_and_stays() {
    let Some(mut lost) = gpu().await else { return };
    let mut x = buffer(&mut lost, &[1.0]);
    lost.lose_device();
    let mut out = [0.0];
    let error = lost.read(&x, 0, &mut out).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::DeviceLost, "{error}");
    assert_eq!(lost.write_f32(&mut x, &[2.0]).unwrap_err().code(), ErrorCode::DeviceLost);

    let sabotage = Some(Sabotage::Invalid("gate"));
    let options = GpuOptions { software: true, sabotage, ..GpuOptions::default() };
    let error = GpuBackend::new(&options).await.err().expect("a text that is no kernel");
    assert_eq!(error.code(), ErrorCode::ShaderError, "{error}");
    for part in ["kernel gate was refused", "nothing_of_this_name"] {
        assert!(error.to_string().contains(part), "{error}");
    }
}

pub(super) async fn copies_and_synthetic_arithmetic_do_what_they_say() {
    let Some(mut gpu) = gpu().await else { return };
    let from = buffer(&mut gpu, &[1.0, 2.0, 3.0]);
    let mut to = zeros(&mut gpu, 3);
    gpu.copy(&from, &mut to).unwrap();
    assert_eq!(read(&mut gpu, &to, 3).await, [1.0, 2.0, 3.0]);
    let mut longer = zeros(&mut gpu, 4);
    assert_eq!(gpu.copy(&from, &mut longer).unwrap_err().code(), ErrorCode::InvalidArgument);

    let mut out = zeros(&mut gpu, 128);
    assert_eq!(gpu.multiply_add(&mut out, 8).unwrap(), 2 * 16 * 8 * 128);
    for (i, found) in read(&mut gpu, &out, 128).await.into_iter().enumerate() {
        // Every step is exact in `f32`.
        let start = (i % 64) as f32 / 64.0;
        assert_eq!(found, 16.0 * (2.0 - (2.0 - start) / 256.0), "{i}");
    }
    assert_eq!(gpu.multiply_add(&mut out, 3).unwrap_err().code(), ErrorCode::InvalidArgument);
}
