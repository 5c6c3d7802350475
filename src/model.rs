//! The decoder, configured by a checkpoint.
//!
//! `config` reads the model's configuration. `checkpoint` opens a model's folder. `weights` loads single modules onto a
//! backend. `block` has the steps of a block. `runner` runs tokens through the model: block by block with hidden states
//! in a `hidden_store`, or, in `decoder`, through the whole model to logits. Not here: choosing tokens (`generate`) and
//! evaluation (`validate`).

pub mod block;
pub mod checkpoint;
pub mod config;
pub mod decoder;
pub mod hidden_store;
pub mod inspection;
pub mod kv_cache;
pub mod names;
mod reading_notes;
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
pub use reading_notes::ReadingNotes;
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
