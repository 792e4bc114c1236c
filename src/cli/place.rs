//! Words → paths, weights, sizes.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::formats::hub;

/// Roots of the Hugging Face cache, as huggingface_hub finds them.
pub fn caches() -> Vec<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let explicit = variable("HF_HUB_CACHE").or_else(|| variable("HUGGINGFACE_HUB_CACHE"));
    let home = variable("HF_HOME").map(|home| home.join("hub"));
    let cache = variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")));
    explicit.or(home).or_else(|| cache.map(|cache| cache.join("huggingface/hub"))).into_iter().collect()
}

/// A path, or a model in the Hugging Face cache.
pub fn path(written: &OsStr) -> Result<PathBuf> {
    hub::resolve(written, &caches())
}

/// A model, or the component of a pipeline that is meant.
pub fn model(written: &OsStr, component: Option<&str>) -> Result<PathBuf> {
    let whole = path(written)?;
    let Some(component) = component else { return Ok(whole) };
    let part = whole.join(component);
    if part.is_dir() && Path::new(component).components().count() == 1 {
        return Ok(part);
    }
    let problem = format!("`{}` holds no component `{component}`", whole.display());
    Err(Error::invalid("--component", problem).hint("it is the name of a folder of a pipeline, such as transformer_2"))
}

/// An adapter and its weight: `path`, `path:0.7`, `org/name@rev:-1`. If all of it is an existing path, it is a path.
pub fn adapter(written: &OsStr) -> Result<(PathBuf, f64)> {
    // A link to nothing is a path too, and refused where it is opened.
    if std::fs::symlink_metadata(written).is_ok() {
        return Ok((path(written)?, 1.0));
    }
    let bytes = written.as_bytes();
    let Some(colon) = bytes.iter().rposition(|byte| *byte == b':') else {
        return match meant(written) {
            Some(hint) => Err(Error::invalid("ADAPTER[:W]", format!("`{}` is no path", written.display())).hint(hint)),
            None => Ok((path(written)?, 1.0)),
        };
    };
    let (place, weight) = (OsStr::from_bytes(&bytes[..colon]), OsStr::from_bytes(&bytes[colon + 1..]));
    match weight.to_str().and_then(|weight| weight.parse::<f64>().ok()) {
        Some(strength) if strength.is_finite() => Ok((path(place)?, strength)),
        _ => {
            let (weight, written) = (weight.display(), written.display());
            Err(Error::invalid("ADAPTER[:W]", format!("`{weight}` in `{written}` is not a finite number")))
        }
    }
}

/// How a weight is written, where it stands behind another sign or alone.
fn meant(written: &OsStr) -> Option<String> {
    let text = written.to_str()?;
    let is_weight = |weight: &str| weight.parse::<f64>().is_ok_and(f64::is_finite);
    if is_weight(text) {
        return Some(format!("a weight stands behind its adapter, after a colon: `ADAPTER:{text}`"));
    }
    let (place, weight) = text.rsplit_once(['=', '@', '*', ','])?;
    let known = is_weight(weight) && Path::new(place).exists();
    known.then(|| format!("weights are written after a colon: `{place}:{weight}`"))
}

/// Sizes as people write them: `5GB` (10⁹), `500MiB` (2²⁰), plain bytes.
pub fn size(option: &str, written: &str) -> Result<u64> {
    const UNITS: [(&str, u64); 10] = [
        ("KIB", 1 << 10),
        ("MIB", 1 << 20),
        ("GIB", 1 << 30),
        ("TIB", 1 << 40),
        ("KB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("TB", 1_000_000_000_000),
        ("B", 1),
        ("", 1),
    ];
    let text = written.trim().to_uppercase();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let unit = UNITS.iter().find(|(unit, _)| *unit == text[digits..].trim()).map(|(_, factor)| *factor);
    let bytes = text[..digits].parse::<f64>().ok().zip(unit).map(|(number, unit)| number * unit as f64);
    match bytes {
        Some(bytes) if bytes >= 1.0 && bytes < u64::MAX as f64 => Ok(bytes as u64),
        _ => Err(Error::invalid(option, format!("`{written}` is not a size such as `5GB` or `500MiB`"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn sizes_are_decimal_or_binary_as_written() {
        for (text, bytes) in
            [("5GB", 5_000_000_000), ("64MiB", 64 << 20), ("1.5 kb", 1500), ("123", 123), ("2gib", 2 << 30)]
        {
            assert_eq!(size("--x", text).expect(text), bytes, "{text}");
        }
        for text in ["", "GB", "0", "-1GB", "5XB", "1e30GB", "nan"] {
            assert!(size("--x", text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_path_with_a_colon_is_a_path() {
        let directory = tempfile::tempdir().expect("a directory");
        let odd = directory.path().join("a:0.5");
        std::fs::create_dir(&odd).expect("a directory");
        assert_eq!(adapter(odd.as_os_str()).expect("a path"), (odd.clone(), 1.0));
        let with = |path: &Path, weight: &str| {
            let mut written = path.as_os_str().to_owned();
            written.push(weight);
            adapter(&written)
        };
        assert_eq!(with(&odd, ":-0.5").expect("a weight"), (odd, -0.5));
        assert!(with(directory.path(), ":x").is_err());
        // Names of files are bytes.
        let bytes = directory.path().join(OsStr::from_bytes(b"n\xFF"));
        std::fs::create_dir(&bytes).expect("a directory");
        assert_eq!(with(&bytes, ":2").expect("a weight"), (bytes, 2.0));
    }
}
