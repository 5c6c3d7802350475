//! The one decoder, driven by a checkpoint's configuration.
//!
//! `config` reads what a model is, `checkpoint` opens the folder that holds it, `weights` brings single modules to a
//! backend, `block` has their steps, `runner` takes tokens through them, from one `hidden_store` to another or, in `decoder`,
//! to logits. Not here: choosing tokens (`generate`) and judging them (`validate`).

pub mod block;
pub mod checkpoint;
pub mod config;
pub mod decoder;
pub mod hidden_store;
pub mod inspection;
pub mod kv_cache;
pub mod names;
pub mod rope;
pub mod runner;
#[cfg(feature = "train")]
pub mod trained;
pub mod weights;

pub use checkpoint::Checkpoint;
pub use config::{Architecture, ModelConfig};
pub use decoder::CausalLm;
pub use inspection::Inspection;
pub use kv_cache::KvCache;
pub use weights::LoadOptions;

#[cfg(all(test, not(target_arch = "wasm32")))]
mod tests {
    use super::*;
    use crate::backend::any::AnyBackend;

    #[test]
    fn checkpoints_and_models_go_to_other_threads() {
        fn sent<T: Send>() {}
        fn shared<T: Sync>() {}
        sent::<CausalLm<AnyBackend>>();
        sent::<Checkpoint>();
        shared::<Checkpoint>();
    }
}
