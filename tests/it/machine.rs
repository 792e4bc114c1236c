//! What cargo reports as ignored follows what the build found on this machine (build.rs).

use std::path::Path;

#[test]
fn the_build_saw_the_reference_data_that_is_there() {
    let there = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/reference").is_dir();
    let unwanted = option_env!("LORAKIT_NO_REFERENCE").is_some();
    assert_eq!(cfg!(reference), there && !unwanted, "build.rs looked when this was otherwise: touch build.rs");
}
