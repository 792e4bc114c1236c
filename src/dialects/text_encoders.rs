//! Text encoders of image pipelines, as PEFT names their modules: without the component, which files of a pipeline need.
//!
//! The encoders of CLIP differ in their width: CLIP-L has 768 features and OpenCLIP-H 1024, both the first encoder of their pipelines;
//! OpenCLIP-bigG has 1280, and is the second one of SDXL. Source: the configs of stabilityai's and runwayml's repositories.

use crate::naming::components;

/// How paths in a text encoder of CLIP begin.
const CLIP: &str = "text_model.";

/// Features of OpenCLIP-bigG.
const BIG_G: u64 = 1280;

/// The path with its text encoder in front, of a module of `(outputs, inputs)`; as it is where it is no module of one.
pub fn with_component(path: &str, size: (u64, u64)) -> String {
    let path = components::with_component(path);
    if !path.starts_with(CLIP) {
        return path;
    }
    // Every layer has the width of the encoder on one side, and as much or more on the other.
    let component = if size.0.min(size.1) == BIG_G { "text_encoder_2" } else { "text_encoder" };
    format!("{component}.{path}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_width_tells_the_encoder() {
        let path = "text_model.encoder.layers.0.mlp.fc1";
        for (size, wanted) in
            [((3072, 768), "text_encoder"), ((4096, 1024), "text_encoder"), ((5120, 1280), "text_encoder_2")]
        {
            assert_eq!(with_component(path, size), format!("{wanted}.{path}"));
        }
        assert_eq!(with_component("model.layers.0.q_proj", (4, 4)), "model.layers.0.q_proj");
        assert_eq!(with_component("down_blocks.0.x", (4, 4)), "unet.down_blocks.0.x");
    }
}
