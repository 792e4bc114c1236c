//! The functions and classes a pickle may ask for. They are names here and nothing more: none is ever called.
//!
//! Source: torch 2.15 `_weights_only_unpickler.py` for what a state dict needs. [`INERT`] is what training
//! frameworks leave beside it; such values are read over. Every other name refuses the file.

use std::path::Path;

use crate::error::{Error, Result};
use crate::tensor::Dtype;

/// A name whose meaning is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    /// `OrderedDict` and the like: a dict.
    Mapping,
    /// `torch.Size`: its one argument.
    Size,
    /// `_codecs.encode`: bytes written as text.
    Encode,
    /// `_rebuild_tensor` and `_rebuild_tensor_v2`: (storage, offset, size, stride, …).
    Tensor,
    /// `_rebuild_tensor_v3`: (storage, offset, size, stride, requires_grad, hooks, dtype, …).
    TensorOfDtype,
    /// `_rebuild_parameter` and its variant with a state: (tensor, …).
    Parameter,
    /// `_rebuild_from_type_v2`: (function, type, arguments, state).
    FromType,
    /// A storage class of one element type.
    Storage(Dtype),
    /// A storage class of bytes.
    Bytes,
    /// A `torch.dtype`.
    Dtype(Dtype),
    /// A class or function whose values are read over.
    Inert,
}

/// Modules of torch in which functions and classes that rebuild tensors live, and what those do.
const KNOWN: [(&str, &str, Known); 23] = [
    ("collections", "OrderedDict", Known::Mapping),
    ("collections", "Counter", Known::Mapping),
    ("collections", "defaultdict", Known::Mapping),
    ("torch", "Size", Known::Size),
    ("_codecs", "encode", Known::Encode),
    ("torch._utils", "_rebuild_tensor", Known::Tensor),
    ("torch._utils", "_rebuild_tensor_v2", Known::Tensor),
    ("torch._utils", "_rebuild_tensor_v3", Known::TensorOfDtype),
    ("torch._utils", "_rebuild_parameter", Known::Parameter),
    ("torch._utils", "_rebuild_parameter_with_state", Known::Parameter),
    ("torch._tensor", "_rebuild_from_type_v2", Known::FromType),
    ("torch.storage", "UntypedStorage", Known::Bytes),
    ("torch.storage", "_UntypedStorage", Known::Bytes),
    ("torch", "UntypedStorage", Known::Bytes),
    ("torch.serialization", "_get_layout", Known::Inert),
    ("torch.nn.parameter", "Parameter", Known::Inert),
    ("torch.nn.parameter", "Buffer", Known::Inert),
    ("torch.nn", "Parameter", Known::Inert),
    ("torch", "Tensor", Known::Inert),
    ("torch._tensor", "Tensor", Known::Inert),
    ("torch", "device", Known::Inert),
    ("torch.torch_version", "TorchVersion", Known::Inert),
    ("torch", "Generator", Known::Inert),
];

/// Storage classes of `torch` (and, in old files, of `torch.cuda`), the names of the dtype, and what they hold.
const ELEMENTS: [(&str, &[&str], Dtype); 21] = [
    ("DoubleStorage", &["float64", "double"], Dtype::F64),
    ("FloatStorage", &["float32", "float"], Dtype::F32),
    ("HalfStorage", &["float16", "half"], Dtype::F16),
    ("BFloat16Storage", &["bfloat16"], Dtype::Bf16),
    ("LongStorage", &["int64", "long"], Dtype::I64),
    ("IntStorage", &["int32", "int"], Dtype::I32),
    ("ShortStorage", &["int16", "short"], Dtype::I16),
    ("CharStorage", &["int8"], Dtype::I8),
    ("ByteStorage", &["uint8"], Dtype::U8),
    ("BoolStorage", &["bool"], Dtype::Bool),
    ("ComplexFloatStorage", &["complex64", "cfloat"], Dtype::C64),
    ("Float8_e4m3fnStorage", &["float8_e4m3fn"], Dtype::F8E4M3),
    ("Float8_e5m2Storage", &["float8_e5m2"], Dtype::F8E5M2),
    ("Float8_e4m3fnuzStorage", &["float8_e4m3fnuz"], Dtype::F8E4M3Fnuz),
    ("Float8_e5m2fnuzStorage", &["float8_e5m2fnuz"], Dtype::F8E5M2Fnuz),
    ("Float8_e8m0fnuStorage", &["float8_e8m0fnu"], Dtype::F8E8M0),
    ("UInt16Storage", &["uint16"], Dtype::U16),
    ("UInt32Storage", &["uint32"], Dtype::U32),
    ("UInt64Storage", &["uint64"], Dtype::U64),
    // Packed bits and bytes without a meaning of their own are kept as bytes.
    ("Bits8Storage", &["bits8"], Dtype::U8),
    ("Bits16Storage", &["bits16"], Dtype::U16),
];

/// What training frameworks put beside a state dict: module, and the names in it or `*` for all.
const INERT: [(&str, &[&str]); 32] = [
    ("argparse", &["Namespace"]),
    ("collections", &["deque"]),
    ("datetime", &["datetime", "date", "time", "timedelta", "timezone"]),
    ("pathlib", &["Path", "PurePath", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"]),
    ("pathlib._local", &["Path", "PurePath", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"]),
    ("typing", &["Any"]),
    ("_io", &["BytesIO"]),
    ("io", &["BytesIO"]),
    ("builtins", &["set", "frozenset", "bytearray", "complex", "slice", "range"]),
    ("builtins", &["dict", "list", "tuple", "int", "float", "bool", "str", "bytes"]),
    ("numpy", &["dtype", "ndarray", "float64", "float32", "int64", "int32", "bool_"]),
    ("numpy.core.multiarray", &["scalar", "_reconstruct"]),
    ("numpy._core.multiarray", &["scalar", "_reconstruct"]),
    ("numpy.core.numeric", &["_frombuffer"]),
    ("numpy._core.numeric", &["_frombuffer"]),
    ("numpy.dtypes", &["*"]),
    ("omegaconf.base", &["*"]),
    ("omegaconf.nodes", &["*"]),
    ("omegaconf.dictconfig", &["DictConfig"]),
    ("omegaconf.listconfig", &["ListConfig"]),
    ("pytorch_lightning.callbacks.*", &["*"]),
    ("pytorch_lightning.utilities.parsing", &["AttributeDict"]),
    ("pytorch_lightning.utilities.enums", &["*"]),
    ("lightning.pytorch.callbacks.*", &["*"]),
    ("lightning.pytorch.utilities.parsing", &["AttributeDict"]),
    ("lightning_fabric.utilities.data", &["AttributeDict"]),
    ("lightning.fabric.utilities.data", &["AttributeDict"]),
    ("transformers.training_args", &["TrainingArguments", "OptimizerNames"]),
    ("transformers.trainer_utils", &["*"]),
    ("accelerate.state", &["*"]),
    ("accelerate.utils.dataclasses", &["*"]),
    ("torch.optim.lr_scheduler", &["*"]),
];

/// What a file with such tensors is.
const SHARD: &str = "it is one rank's shard of a distributed checkpoint (FSDP), which holds a piece of every tensor; gather them with the \
                     trainer (`accelerate merge-weights`, FULL_STATE_DICT)";

/// Names that weight files do ask for and that cannot be kept: a prefix, and why.
const REFUSED: [(&str, &str); 14] = [
    ("__torch__.", "the file is a TorchScript program, not weights"),
    ("torch.distributed.tensor.", SHARD),
    ("torch.distributed._tensor.", SHARD),
    ("optimum.quanto.", "its weights are quantised by quanto; save the adapter or the model before quantisation"),
    ("torch.nn.modules.", "the file is a whole module, not its state dict"),
    ("torch._utils._rebuild_qtensor", "quantised tensors of torch cannot be read"),
    ("torch._utils._rebuild_sparse", "sparse tensors cannot be read"),
    ("torch._utils._rebuild_meta_tensor", "the tensor has no values (device `meta`)"),
    ("torch._utils._rebuild_device_tensor", "the tensor was kept as a numpy array of another device"),
    ("torch.ComplexDouble", "complex numbers of 128 bits cannot be kept in safetensors"),
    ("torch.complex128", "complex numbers of 128 bits cannot be kept in safetensors"),
    ("torch.QInt", "quantised tensors of torch cannot be read"),
    ("torch.QUInt", "quantised tensors of torch cannot be read"),
    ("torch.storage._load_from_bytes", "it was saved by `pickle`, not by `torch.save`"),
];

/// Looks a name up.
///
/// # Errors
/// `Unsupported`, naming the file and the name, for all that is in none of the tables.
pub fn find(file: &Path, module: &str, name: &str) -> Result<Known> {
    // Python 2 called its builtins otherwise.
    let home = if module == "__builtin__" { "builtins" } else { module };
    if let Some((_, _, known)) = KNOWN.iter().find(|row| row.0 == module && row.1 == name) {
        return Ok(known.clone());
    }
    if matches!(module, "torch" | "torch.cuda") {
        let storage = ELEMENTS.iter().find(|row| row.0 == name).map(|row| Known::Storage(row.2.clone()));
        let dtype = ELEMENTS.iter().find(|row| row.1.contains(&name)).map(|row| Known::Dtype(row.2.clone()));
        if let Some(known) = storage.or(dtype) {
            return Ok(known);
        }
    }
    let fits = |pattern: &str| match pattern.strip_suffix(".*") {
        Some(parent) => home.strip_prefix(parent).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')),
        None => pattern == home,
    };
    // A dot in the name would lead out of the module.
    let plain = !name.contains('.');
    let inert = |row: &(&str, &[&str])| fits(row.0) && row.1.iter().any(|known| *known == name || *known == "*");
    if plain && INERT.iter().any(inert) { Ok(Known::Inert) } else { Err(refuse(file, module, home, name)) }
}

fn refuse(file: &Path, module: &str, home: &str, name: &str) -> Error {
    let (module, home, name) = (shown(module), shown(home), shown(name));
    let dotted = format!("{home}.{name}");
    if let Some((_, why)) = REFUSED.iter().find(|(prefix, _)| dotted.starts_with(prefix)) {
        return Error::unsupported(file, format!("asks for `{dotted}`: {why}"));
    }
    let written = if module == home { String::new() } else { format!(" (written `{module}.{name}`)") };
    let what =
        format!("its pickle asks for the Python global `{dotted}`{written}, which no weights need; it was not run");
    Error::unsupported(file, what)
        .hint("load it with nothing else unless you trust its maker, who can save the weights alone as safetensors")
}

/// A name fit for a message: short, and without control characters.
fn shown(name: &str) -> String {
    const LONGEST: usize = 100;
    let plain = |c: char| if c.is_control() { '?' } else { c };
    let text: String = name.chars().take(LONGEST).map(plain).collect();
    if text.len() < name.len() { text + "…" } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_the_tables_is_found() {
        let file = Path::new("x.bin");
        for (module, name, known) in KNOWN {
            assert_eq!(find(file, module, name).unwrap(), known, "{module}.{name}");
        }
        for (storage, dtypes, dtype) in ELEMENTS {
            assert_eq!(find(file, "torch", storage).unwrap(), Known::Storage(dtype.clone()));
            assert_eq!(find(file, "torch.cuda", storage).unwrap(), Known::Storage(dtype.clone()));
            for name in dtypes {
                assert_eq!(find(file, "torch", name).unwrap(), Known::Dtype(dtype.clone()));
            }
        }
        for (module, names) in INERT {
            for name in names {
                let (module, name) = (module.replace('*', "x"), name.replace('*', "Thing"));
                assert_eq!(find(file, &module, &name).unwrap(), Known::Inert, "{module}.{name}");
            }
        }
    }

    #[test]
    fn every_refusal_has_its_reason() {
        for (prefix, why) in REFUSED {
            let (module, name) = prefix.rsplit_once('.').unwrap();
            let error = find(Path::new("x.bin"), module, name).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn anything_else_is_refused_by_name() {
        for (module, name) in [
            ("os", "system"),
            ("posix", "system"),
            ("builtins", "eval"),
            ("builtins", "getattr"),
            ("builtins", "object"),
            ("torch", "load"),
            ("torch.hub", "load"),
            ("numpy.testing._private.utils", "runstring"),
            ("pytorch_lightning.callbacksx", "y"),
            ("pytorch_lightning.callbacks", "os.system"),
            ("collections", "OrderedDict.fromkeys"),
            ("", ""),
        ] {
            let error = find(Path::new("x.bin"), module, name).unwrap_err().to_string();
            assert!(error.starts_with("x.bin: ") && error.contains(&format!("`{module}.{name}`")), "{error}");
        }
    }

    #[test]
    fn names_of_python_2_and_endless_names_are_told() {
        let file = Path::new("x.bin");
        let error = find(file, "__builtin__", "eval").unwrap_err().to_string();
        assert!(error.contains("`builtins.eval` (written `__builtin__.eval`)"), "{error}");
        let error = find(file, "os", &"\u{7}x".repeat(5000)).unwrap_err().to_string();
        assert!(error.len() < 500 && !error.contains('\u{7}'), "{error}");
    }
}
