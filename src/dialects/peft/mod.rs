//! PEFT: `adapter_config.json` and keys below `base_model.model.`.

mod lokr;
pub mod new_adapter;
pub mod new_config;
pub mod read;
pub mod write;
