//! Tests of every kernel against its CPU counterpart and an `f64` reference, and of the shader sources against the
//! host's declarations.
//!
//! Without an adapter, not even a software one, the tests that need one print a note and pass. Tests are `async`,
//! because browsers cannot block: a module built with the feature `kernel-tests` runs the same tests there by name.

mod kernels;
mod linear;
mod operands;
mod recording;
mod self_check;
#[cfg(test)]
mod shaders;

use super::{GpuBackend, GpuOptions};
use crate::error::ErrorCode;

/// Declares each as a test, and lists those that also run in browsers.
macro_rules! tests {
    (
        anywhere: { $($module:ident::{$($name:ident),+ $(,)?})+ }
        native: { $($native_module:ident::{$($native:ident),+ $(,)?})+ }
    ) => {
        /// Names of the tests that also run in browsers.
        #[cfg(feature = "kernel-tests")]
        pub const NAMES: &[&str] = &[$($(stringify!($name)),+),+];

        /// Runs one of [`NAMES`].
        ///
        /// # Panics
        /// If a kernel computes a wrong result, or no test has that name.
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
    // Its ties require a correctly rounded quotient. WGSL allows an error of 2.5 ULP, and SwiftShader makes one.
    linear::{the_other_grid_of_activations_is_that_of_the_cpu}
    recording::{
        an_adapter_that_is_not_there_is_named,
        what_goes_wrong_on_a_device_has_its_code_and_stays,
    }
    }
}

/// A GPU, or `None` with a note on the terminal.
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
