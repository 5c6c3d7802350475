//! Kernel parameters, with the same fields as in the shaders.

use bytemuck::{Pod, Zeroable};

/// The bits of a NaN, for shaders: WGSL has no NaN literal.
pub(super) const NAN_BITS: u32 = 0x7fc0_0000;

/// Declares a parameter struct and, for a test, the names of its fields.
macro_rules! params {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty),* $(,)? }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
        pub(super) struct $name {
            $(pub(super) $field: $type),*
        }

        #[cfg(test)]
        impl $name {
            /// Names and offsets of the fields.
            pub(super) const FIELDS: &[(&str, usize)] =
                &[$((stringify!($field), std::mem::offset_of!($name, $field))),*];
        }
    };
}

params! {
    /// Of the linear kernels.
    Linear {
        rows: u32,
        cols: u32,
        units: u32,
        units_per_group: u32,
        groups: u32,
        group_size: u32,
        zero_point: u32,
        tokens: u32,
        y_stride: u32,
        y_start: u32,
        has_bias: u32,
        padding: u32,
    }
}

params! {
    /// Of `linear_int8.quantize`.
    Quantize {
        tokens: u32,
        cols: u32,
        units: u32,
        units_per_group: u32,
        group_size: u32,
        unit_quads: u32,
        nan_bits: u32,
        full_range: u32,
    }
}

params! {
    /// Of `linear_int8.round_trip`.
    RoundTrip {
        tokens: u32,
        cols: u32,
        full_range: u32,
        padding: u32,
    }
}

params! {
    /// Of `embed`.
    Embed {
        rows: u32,
        first_row: u32,
        table_rows: u32,
        cols: u32,
        units: u32,
        units_per_group: u32,
        groups: u32,
        group_size: u32,
        zero_point: u32,
        tokens: u32,
        nan_bits: u32,
        padding: u32,
    }
}

params! {
    /// Of `add_rms_norm`.
    AddRmsNorm {
        rows: u32,
        width: u32,
        has_delta: u32,
        epsilon: f32,
    }
}

params! {
    /// Of `add_rms_norm.quantize`.
    AddRmsNormQuantize {
        tokens: u32,
        cols: u32,
        units: u32,
        units_per_group: u32,
        group_size: u32,
        unit_quads: u32,
        nan_bits: u32,
        full_range: u32,
        has_delta: u32,
        epsilon: f32,
        padding_0: u32,
        padding_1: u32,
    }
}

params! {
    /// Of `rope_and_append_kv`.
    RopeAndAppendKv {
        tokens: u32,
        segments: u32,
        heads: u32,
        kv_heads: u32,
        head_dim: u32,
        capacity: u32,
        has_norms: u32,
        padding: u32,
        q_epsilon: f32,
        k_epsilon: f32,
        padding_0: u32,
        padding_1: u32,
    }
}

params! {
    /// Of the attention kernels.
    Attention {
        tokens: u32,
        tiles: u32,
        segments: u32,
        heads: u32,
        kv_heads: u32,
        head_dim: u32,
        capacity: u32,
        scale: f32,
    }
}

params! {
    /// Of `gate`.
    Gate {
        tokens: u32,
        width: u32,
        padding_0: u32,
        padding_1: u32,
    }
}

params! {
    /// Of `argmax`.
    Argmax {
        rows: u32,
        width: u32,
        padding_0: u32,
        padding_1: u32,
    }
}

params! {
    /// Of `top_k`.
    TopK {
        rows: u32,
        width: u32,
        k: u32,
        capacity: u32,
    }
}

params! {
    /// Of `gram`.
    Gram {
        tokens: u32,
        cols: u32,
        first: u32,
        rows: u32,
    }
}

params! {
    /// Of `bench/multiply_add`.
    MultiplyAdd {
        rounds: u32,
        factor: f32,
        summand: f32,
        padding: u32,
    }
}
