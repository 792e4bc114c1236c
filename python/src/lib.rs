//! The Python module `lorakit._lorakit`: the verbs of the program, adapters and tensors. What users see is in `python/lorakit`.

#[cfg(feature = "python")]
mod module;
