use std::collections::BTreeSet;

use super::*;

/// Inputs that every share of the tables divides.
const INPUTS: u64 = 6;

fn path(arch: &Arch, name: &template::Template) -> String {
    // Numbers differ from each other and from those that stand in names.
    let numbers = Filling::numbered(&[('i', "17"), ('j', "19"), ('m', "23")], "model.layers.5.");
    let name = name.fill(&numbers);
    arch.components().first().map_or(name.clone(), |component| format!("{component}.{name}"))
}

/// Where every row of a change of `path` ends after one translation: module and row.
fn landed(spots: &[Spot], outputs: u64) -> Vec<(String, u64)> {
    let mut rows = vec![(String::new(), 0); usize::try_from(outputs).unwrap()];
    for spot in spots {
        for row in spot.take.clone() {
            rows[usize::try_from(row).unwrap()] = (spot.module.clone(), spot.at + row - spot.take.start);
        }
    }
    assert!(rows.iter().all(|(module, _)| !module.is_empty()), "rows without a place: {spots:?}");
    rows
}

#[test]
fn every_row_of_every_table_goes_there_and_back() {
    let mut seen = 0;
    for arch in archs() {
        for row in arch.table.rows.iter().filter(|row| !row.diffusers.is_empty() && !row.heads) {
            for outputs in [INPUTS * 2, INPUTS * 4, INPUTS * 5 / 3, INPUTS * 6, INPUTS * 7] {
                let original = path(arch, &row.original);
                let parts = arch.translate(&original, outputs, INPUTS);
                let own = parts.iter().find(|spots| {
                    spots.iter().all(|spot| row.diffusers.iter().any(|name| path(arch, name) == spot.module))
                });
                let Some(spots) = own else {
                    assert!(sizes(&row.shares, outputs, INPUTS).is_none(), "{original} of {outputs}: {parts:?}");
                    continue;
                };
                let there = landed(spots, outputs);
                for spot in spots {
                    let module = &spot.module;
                    let own = spots.iter().filter(|spot| spot.module == *module);
                    let size = own.map(|spot| spot.take.end - spot.take.start).sum();
                    let back = arch.translate(module, size, INPUTS);
                    let back =
                        back.iter().find(|spots| spots.iter().all(|spot| spot.module == original)).expect(module);
                    assert!(back[0].of.is_none_or(|of| of == outputs), "{original}");
                    let back = landed(back, size);
                    for (at, (_, part_row)) in there.iter().enumerate().filter(|(_, (to, _))| to == module) {
                        let (_, row) = back[usize::try_from(*part_row).unwrap()];
                        assert_eq!(row, at as u64, "{original} of {outputs} by {module}");
                    }
                }
                seen += 1;
            }
        }
    }
    assert!(seen > 500, "only {seen}");
}

#[test]
fn no_name_means_two_weights_of_one_family() {
    for arch in archs() {
        for spelling in [Spelling::Original, Spelling::Diffusers] {
            let mut seen = BTreeSet::new();
            for row in &arch.table.rows {
                let names: Vec<_> = match spelling {
                    Spelling::Original => vec![&row.original],
                    Spelling::Diffusers => row.diffusers.iter().collect(),
                };
                for name in names.into_iter().filter(|name| arch.name() != "language" || !name.is_open()) {
                    assert!(seen.insert(path(arch, name)), "{}: {}", arch.name(), path(arch, name));
                }
            }
        }
    }
}

#[test]
fn flattened_names_come_back() {
    let mut seen = 0;
    for arch in archs().iter().filter(|arch| !arch.components().is_empty()) {
        for row in &arch.table.rows {
            for name in std::iter::once(&row.original).chain(&row.diffusers) {
                let dotted = path(arch, name);
                let flat = flatten(&dotted, true).unwrap();
                assert_eq!(arch.unflatten(&flat).iter().collect::<BTreeSet<_>>(), BTreeSet::from([&dotted]), "{flat}");
                match unflatten(&flat) {
                    Ok(found) => assert_eq!(found.as_deref(), Some(dotted.as_str())),
                    Err(found) => assert!(found.contains(&dotted) && found.len() > 1, "{found:?}"),
                }
                assert_eq!(flatten(&dotted, true).as_deref(), Some(flat.as_str()));
                seen += 1;
            }
        }
    }
    assert!(seen > 500, "only {seen}");
}

#[test]
fn names_of_real_files_are_read() {
    for (flat, dotted) in [
        (
            "lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_out_0",
            "unet.down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_out.0",
        ),
        ("lora_unet_mid_block_resnets_1_time_emb_proj", "unet.mid_block.resnets.1.time_emb_proj"),
        (
            "lora_unet_input_blocks_4_1_transformer_blocks_1_ff_net_0_proj",
            "unet.input_blocks.4.1.transformer_blocks.1.ff.net.0.proj",
        ),
        ("lora_unet_input_blocks_3_0_op", "unet.input_blocks.3.0.op"),
        ("lora_unet_label_emb_0_2", "unet.label_emb.0.2"),
        (
            "lora_te1_text_model_encoder_layers_11_self_attn_out_proj",
            "text_encoder.text_model.encoder.layers.11.self_attn.out_proj",
        ),
        ("lora_te2_text_model_encoder_layers_31_mlp_fc1", "text_encoder_2.text_model.encoder.layers.31.mlp.fc1"),
        (
            "lora_te3_encoder_block_3_layer_1_DenseReluDense_wi_0",
            "text_encoder_3.encoder.block.3.layer.1.DenseReluDense.wi_0",
        ),
        ("lora_unet_single_blocks_37_linear1", "transformer.single_blocks.37.linear1"),
        ("lora_unet_double_blocks_0_img_mod_lin", "transformer.double_blocks.0.img_mod.lin"),
        ("lora_unet_joint_blocks_3_context_block_mlp_fc2", "transformer.joint_blocks.3.context_block.mlp.fc2"),
        ("lora_unet_blocks_29_cross_attn_k_img", "transformer.blocks.29.cross_attn.k_img"),
        ("lora_unet_transformer_blocks_59_attn_to_add_out", "transformer.transformer_blocks.59.attn.to_add_out"),
        ("lora_unet_transformer_blocks_59_txt_mlp_net_0_proj", "transformer.transformer_blocks.59.txt_mlp.net.0.proj"),
        ("lora_transformer_single_transformer_blocks_1_proj_mlp", "transformer.single_transformer_blocks.1.proj_mlp"),
        ("lycoris_transformer_blocks_3_ff_context_net_2", "transformer.transformer_blocks.3.ff_context.net.2"),
    ] {
        assert_eq!(unflatten(flat), Ok(Some(dotted.to_owned())), "{flat}");
    }
    assert_eq!(unflatten("lora_unet_foo_bar"), Ok(None));
    assert_eq!(unflatten("model_layers_0"), Ok(None));
}

#[test]
fn two_readings_are_both_told_and_the_rest_of_the_file_decides() {
    let qkv = "lora_unet_double_blocks_0_img_attn_qkv";
    let both = ["transformer.double_blocks.0.img_attn.qkv", "transformer.double_blocks.0.img_attn_qkv"];
    assert_eq!(unflatten(qkv), Err(both.map(str::to_owned).to_vec()));
    let with = |other: &str| unflatten_all(&[qkv, other])[0].clone();
    assert_eq!(with("lora_unet_single_blocks_3_modulation_lin"), Ok(Some(both[0].to_owned())));
    assert_eq!(with("lora_unet_single_blocks_3_modulation_linear"), Ok(Some(both[1].to_owned())));
}

#[test]
fn parts_of_fused_weights_have_their_rows() {
    let spot = |module: &str, take, at, of| Spot { module: module.into(), take, at, of };
    let flux = arch("flux").unwrap();
    let fused = flux.translate("transformer.single_blocks.2.linear1", 7 * 24, 24);
    let part = |name: &str| format!("transformer.single_transformer_blocks.2.{name}");
    assert_eq!(
        fused,
        [vec![
            spot(&part("attn.to_q"), 0..24, 0, Some(24)),
            spot(&part("attn.to_k"), 24..48, 0, Some(24)),
            spot(&part("attn.to_v"), 48..72, 0, Some(24)),
            spot(&part("proj_mlp"), 72..168, 0, Some(96)),
        ]]
    );
    assert!(flux.translate("transformer.single_blocks.2.linear1", 48, 24).is_empty());
    let mlp = translate(&part("proj_mlp"), 96, 24);
    assert_eq!(mlp, [[spot("transformer.single_blocks.2.linear1", 0..96, 72, Some(168))]]);
    let swapped = translate("transformer.final_layer.adaLN_modulation.1", 48, 24);
    let norm = "transformer.norm_out.linear";
    assert!(swapped.contains(&vec![spot(norm, 0..24, 24, Some(48)), spot(norm, 24..48, 0, Some(48))]));
    let keys = translate("model.layers.3.self_attn.k_proj", 8, 24);
    assert_eq!(keys[0], [spot("model.layers.3.self_attn.qkv_proj", 0..8, 24, Some(40))]);
    let up = translate("model.layers.3.mlp.up_proj", 64, 24);
    assert_eq!(up, [[spot("model.layers.3.mlp.gate_up_proj", 0..64, 64, Some(128))]]);
}

#[test]
fn the_blocks_of_the_unets_are_counted_as_diffusers_counts_them() {
    let other = |path: &str| -> BTreeSet<String> {
        translate(path, 8, 8).into_iter().map(|spots| spots[0].module.clone()).collect()
    };
    for (original, diffusers) in [
        ("input_blocks.1.1.proj_in", "down_blocks.0.attentions.0.proj_in"),
        (
            "input_blocks.5.1.transformer_blocks.0.attn2.to_k",
            "down_blocks.1.attentions.1.transformer_blocks.0.attn2.to_k",
        ),
        (
            "input_blocks.7.1.transformer_blocks.9.attn2.to_k",
            "down_blocks.2.attentions.0.transformer_blocks.9.attn2.to_k",
        ),
        ("input_blocks.10.0.in_layers.2", "down_blocks.3.resnets.0.conv1"),
        ("input_blocks.9.0.op", "down_blocks.2.downsamplers.0.conv"),
        ("middle_block.2.emb_layers.1", "mid_block.resnets.1.time_emb_proj"),
        ("output_blocks.11.0.skip_connection", "up_blocks.3.resnets.2.conv_shortcut"),
        ("output_blocks.5.2.conv", "up_blocks.1.upsamplers.0.conv"),
    ] {
        let (original, diffusers) = (format!("unet.{original}"), format!("unet.{diffusers}"));
        assert_eq!(other(&original), BTreeSet::from([diffusers.clone()]));
        assert!(other(&diffusers).contains(&original), "{diffusers}");
    }
    // Where the first level has no attention, its upsampler comes second.
    let upsampler = other("unet.up_blocks.0.upsamplers.0.conv");
    assert_eq!(upsampler, ["unet.output_blocks.2.1.conv", "unet.output_blocks.2.2.conv"].map(str::to_owned).into());
}

#[test]
fn a_family_is_told_by_its_names() {
    let of = |paths: &[&str]| match archs_of(paths.iter().copied()).as_slice() {
        [arch] => Some(arch.name()),
        _ => None,
    };
    assert_eq!(
        of(&[
            "transformer.single_transformer_blocks.0.proj_mlp",
            "transformer.transformer_blocks.0.norm1.linear",
            "transformer.time_text_embed.guidance_embedder.linear_1",
            "transformer.single_transformer_blocks.0.attn.to_q",
            "transformer.context_embedder"
        ]),
        Some("flux")
    );
    assert_eq!(of(&["unet.input_blocks.7.1.transformer_blocks.9.attn1.to_q"]), Some("sdxl"));
    assert_eq!(
        of(&["lora_unet_up_blocks_3_attentions_0_proj_in", "lora_te_text_model_encoder_layers_0_mlp_fc1"]),
        Some("sd1")
    );
    assert_eq!(of(&["transformer.blocks.0.self_attn.q"]), Some("wan"));
    assert_eq!(of(&["lora_te_text_model_encoder_layers_0_mlp_fc1"]), Some("clip"));
    assert_eq!(of(&["model.layers.0.input_layernorm"]), None);
}

#[test]
fn parameters_are_called_as_the_original_calls_them() {
    assert_eq!(parameter("a.attn.in_proj", "bias"), "a.attn.in_proj_bias");
    assert_eq!(
        parameter("double_blocks.0.img_attn.norm.query_norm", "weight"),
        "double_blocks.0.img_attn.norm.query_norm.scale"
    );
    assert_eq!(parameter("a.b", "weight"), "a.b.weight");
}

#[test]
fn torchtunes_names_say_which_rows_are_reordered() {
    let torchtune = arch("torchtune").unwrap();
    let renamed = |path: &str| torchtune.renamed(path, Spelling::Diffusers);
    assert_eq!(renamed("layers.3.attn.q_proj"), Some(("model.layers.3.self_attn.q_proj".into(), true)));
    assert_eq!(renamed("layers.3.mlp.w2"), Some(("model.layers.3.mlp.down_proj".into(), false)));
    assert_eq!(torchtune.renamed("lm_head", Spelling::Original), Some(("output".into(), false)));
}

/// `fixtures/archs/NAME.txt`: what diffusers' own converters make of every weight of its classes, row by row.
#[test]
fn the_tables_say_what_diffusers_converters_do() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/archs");
    let mut reached: BTreeSet<(String, String)> = BTreeSet::new();
    for name in
        "flux flux2 hunyuan_video ltx_video lumina2 qwen_image sd1 sd3 sdxl wan wan_vace z_image".split_whitespace()
    {
        let arch = arch(name.trim_end_matches("_vace")).unwrap();
        let below = |module: &str| format!("{}.{module}", arch.components()[0]);
        let text = std::fs::read_to_string(folder.join(format!("{name}.txt"))).unwrap();
        for line in text.lines() {
            let (left, right) = line.split_once(" = ").unwrap();
            let words: Vec<&str> = left.split(' ').collect();
            let size = |at: usize| words.get(at).map_or(64, |word| word.parse::<u64>().unwrap());
            // A module that is renamed has any size; a wide one also has that of an MLP.
            let (outputs, inputs) = (size(1), words.get(2).map_or(16, |word| word.parse().unwrap()));
            let spots: Vec<(String, Range<u64>, u64)> = match words.len() {
                1 => vec![(below(right), 0..outputs, 0)],
                _ => right
                    .split(", ")
                    .map(|spot| {
                        let spot: Vec<&str> = spot.split(' ').collect();
                        let (from, to) = spot[0].split_once("..").unwrap();
                        (below(spot[1]), from.parse().unwrap()..to.parse().unwrap(), spot[2].parse().unwrap())
                    })
                    .collect(),
            };
            let original = below(words[0]);
            assert!(spots.iter().all(|(module, ..)| arch.knows(module)) && arch.knows(&original), "{name}: {line}");
            if spots[0].0 != original {
                let found = arch.translate(&original, outputs, inputs);
                let found: Vec<_> =
                    found[0].iter().map(|spot| (spot.module.clone(), spot.take.clone(), spot.at)).collect();
                assert_eq!(found, spots, "{name}: {line}");
            }
            for (module, ..) in spots {
                for (place, _) in arch.find(arch.below(&module).unwrap().1) {
                    reached.insert((arch.name().to_owned(), format!("{:?}", arch.row(place).original)));
                }
            }
        }
    }
    // No row is there that no model has; but for shortcuts, which a residual block of a UNet may have or not.
    for arch in archs().iter().filter(|arch| arch.is_denoiser() && !arch.is_aside()) {
        for row in &arch.table.rows {
            let key = (arch.name().to_owned(), format!("{:?}", row.original));
            assert!(reached.contains(&key) || key.1.contains("skip_connection"), "{}: {}", arch.name(), key.1);
        }
    }
}
