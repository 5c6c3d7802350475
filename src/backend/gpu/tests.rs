//! Every kernel against its CPU twin and an `f64` reference, and the shaders' texts against what the host assumes.
//!
//! Where there is no adapter, not even a software one, the tests that need one say so and do nothing. Tests are `async`, so
//! that browsers, which wait for nothing, run the very same ones: there, a module that is built with the feature
//! `kernel-tests` has them under their names.

mod kernels;
mod linear;
mod operands;
mod recording;
mod self_check;
#[cfg(test)]
mod shaders;

use super::{GpuBackend, GpuOptions};
use crate::error::ErrorCode;

/// Makes each a test of its own, and lists those that run in browsers too.
macro_rules! tests {
    (
        anywhere: { $($module:ident::{$($name:ident),+ $(,)?})+ }
        native: { $($native_module:ident::{$($native:ident),+ $(,)?})+ }
    ) => {
        /// The tests that run in browsers too.
        #[cfg(feature = "kernel-tests")]
        pub const NAMES: &[&str] = &[$($(stringify!($name)),+),+];

        /// Runs one of [`NAMES`].
        ///
        /// # Panics
        /// A kernel computes wrong, or nothing has that name.
        #[cfg(feature = "kernel-tests")]
        pub async fn run(name: &str) {
            $($(if name == stringify!($name) {
                return $module::$name().await;
            })+)+
            panic!("no test is named `{name}`");
        }

        #[cfg(test)]
        mod native {
            use crate::task::block_on;

            $($(#[test]
            fn $name() {
                block_on(super::$module::$name());
            })+)+
            $($(#[test]
            fn $native() {
                block_on(super::$native_module::$native());
            })+)+
        }
    };
}

tests! {
    anywhere: {
    kernels::{
        add_rms_norm_agrees_and_updates_the_residual,
        rope_and_append_kv_agrees,
        attention_agrees_in_decode_and_prefill_over_one_segment_and_several,
        gate_agrees_over_the_whole_range,
        argmax_and_top_k_are_those_of_the_cpu,
        gram_agrees,
        what_does_not_fit_is_an_error,
    }
    linear::{
        every_format_agrees_with_the_reference_and_the_cpu,
        parts_of_one_or_several_formats_stand_side_by_side,
        a_norm_that_rounds_makes_what_norm_and_rounding_make,
        columns_in_another_order_are_refused,
        weights_over_one_binding_are_split,
        more_rows_than_one_dimension_has_workgroups,
        embeddings_of_every_format_are_exact,
        broken_numbers_stay_visible,
    }
    recording::{
        steps_are_submitted_together_and_each_keeps_its_parameters,
        writing_waits_for_what_was_recorded_before,
        each_step_has_the_segments_that_it_was_recorded_with,
        buffers_that_are_used_again_are_zero,
        a_reading_has_what_was_there_when_it_began,
        wrong_operands_and_impossible_sizes_are_errors,
        copies_and_synthetic_arithmetic_do_what_they_say,
    }
    self_check::{
        a_kernel_that_does_nothing_is_found_out,
        a_variant_that_fails_is_replaced_and_the_answer_stays_right,
        each_format_is_checked_once,
    }
    }
    native: {
    // Its ties lie where a quotient must be rounded correctly; WGSL allows an error of 2.5 units, and SwiftShader makes one.
    linear::{the_other_grid_of_activations_is_that_of_the_cpu}
    recording::{
        an_adapter_that_is_not_there_is_named,
        what_goes_wrong_on_a_device_has_its_code_and_stays,
    }
    }
}

/// A GPU, or `None` with a word on the terminal.
async fn gpu() -> Option<GpuBackend> {
    gpu_with(&GpuOptions { software: true, ..GpuOptions::default() }).await
}

async fn gpu_with(options: &GpuOptions) -> Option<GpuBackend> {
    match GpuBackend::new(options).await {
        Ok(gpu) => Some(gpu),
        Err(error) => {
            assert_eq!(error.code(), ErrorCode::NoDevice, "{error}");
            eprintln!("skipped: no adapter");
            None
        }
    }
}
