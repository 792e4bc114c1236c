#!/usr/bin/env python3
"""Names of diffusion models: lorakit's tables against diffusers' own classes and converters.

Of every family a small model is built by its class, and an adapter that changes every weight it has. Then
* lorakit puts the adapter into the names of the model's authors, and the sums B·A, taken as a checkpoint in those names, go through
  diffusers' converter for single files: out must come the weights of the class, each changed as by the adapter there was;
* the same adapter, in ComfyUI's and in sd-scripts' names, goes through diffusers' converters for adapters, and through lorakit;
* both spellings of the adapter are merged into both spellings of a model: the results must be one.

    python tests/peers/archs.py [--lorakit target/release/lorakit] [--write fixtures/archs] [FAMILY …]

`--write` records which row of which original weight lands where: the data of the test in `src/naming/arch/tests.rs`.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import types
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

DEFAULT_BINARY = Path(__file__).resolve().parents[2] / "target" / "release" / "lorakit"
RANK = 2
LIMIT = 2e-5
HEADS = dict(num_attention_heads=2, attention_head_dim=8)
UNET = dict(norm_num_groups=4, cross_attention_dim=12, layers_per_block=2)

# Class, its config, the converter for whole checkpoints, and the sizes that converters take for granted → those of the small model.
FAMILIES = {
    "flux": ("FluxTransformer2DModel", dict(HEADS, in_channels=4, num_layers=1, num_single_layers=1, joint_attention_dim=12, pooled_projection_dim=10, guidance_embeds=True, axes_dims_rope=(2, 2, 4)), "convert_flux_transformer_checkpoint_to_diffusers", {3072: 16, 12288: 64}),
    "flux2": ("Flux2Transformer2DModel", dict(HEADS, in_channels=4, num_layers=1, num_single_layers=1, joint_attention_dim=12, timestep_guidance_channels=6, axes_dims_rope=(2, 2, 2, 2)), "convert_flux2_transformer_checkpoint_to_diffusers", {}),
    "lumina2": ("Lumina2Transformer2DModel", dict(in_channels=4, hidden_size=24, num_layers=1, num_refiner_layers=2, num_attention_heads=6, num_kv_heads=2, cap_feat_dim=10, multiple_of=8, axes_dim_rope=(2, 2, 2)), "convert_lumina2_to_diffusers", {2304: 24, 768: 8}),
    "z_image": ("ZImageTransformer2DModel", dict(in_channels=4, dim=16, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=10, siglip_feat_dim=6, axes_dims=[2, 2, 4], axes_lens=[8, 8, 8]), "convert_z_image_transformer_checkpoint_to_diffusers", {}),
    "ltx_video": ("LTXVideoTransformer3DModel", dict(HEADS, in_channels=4, out_channels=4, cross_attention_dim=16, num_layers=1, caption_channels=10), "convert_ltx_transformer_checkpoint_to_diffusers", {}),
    "sd3": ("SD3Transformer2DModel", dict(HEADS, sample_size=8, in_channels=4, num_layers=3, joint_attention_dim=12, caption_projection_dim=16, pooled_projection_dim=10, out_channels=4, pos_embed_max_size=8, dual_attention_layers=(0, 1), qk_norm="rms_norm"), "convert_sd3_transformer_checkpoint_to_diffusers", {}),
    "wan": ("WanTransformer3DModel", dict(HEADS, in_channels=4, out_channels=4, text_dim=10, freq_dim=6, ffn_dim=20, num_layers=1, image_dim=14, added_kv_proj_dim=16, pos_embed_seq_len=8), "convert_wan_transformer_to_diffusers", {}),
    "wan_vace": ("WanVACETransformer3DModel", dict(HEADS, in_channels=4, out_channels=4, text_dim=10, freq_dim=6, ffn_dim=20, num_layers=2, vace_layers=[0, 1], vace_in_channels=6), "convert_wan_transformer_to_diffusers", {}),
    "qwen_image": ("QwenImageTransformer2DModel", dict(HEADS, in_channels=4, out_channels=2, num_layers=1, joint_attention_dim=12, axes_dims_rope=(2, 2, 4)), None, {}),
    "hunyuan_video": ("HunyuanVideoTransformer3DModel", dict(HEADS, in_channels=4, out_channels=4, num_layers=1, num_single_layers=1, num_refiner_layers=1, text_embed_dim=12, pooled_projection_dim=10, rope_axes_dim=(2, 2, 4)), "convert_hunyuan_video_transformer_to_diffusers", {3072: 16}),
    "sd1": ("UNet2DConditionModel", dict(UNET, block_out_channels=(8, 16, 32, 32), attention_head_dim=4), "convert_ldm_unet_checkpoint", {}),
    "sdxl": ("UNet2DConditionModel", dict(UNET, block_out_channels=(8, 16, 32), attention_head_dim=[2, 4, 8], use_linear_projection=True, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=[1, 1, 2], addition_embed_type="text_time", addition_time_embed_dim=6, projection_class_embeddings_input_dim=30), "convert_ldm_unet_checkpoint", {}),
}

# Converters for adapters: name, the spelling they read, and parts of names that they do not know, or know wrongly: Flux.2's last layer
# has its halves exchanged by diffusers' converter of checkpoints, and not by the one of adapters; HunyuanVideo's last layer has those of A
# exchanged too, and the A of its text refiner cut in three.
ADAPTERS = {
    "flux": [("_convert_kohya_flux_lora_to_diffusers", "kohya", ())],
    "flux2": [
        ("_convert_non_diffusers_flux2_lora_to_diffusers", "AB", ("norm_out",)),
        ("_convert_kohya_flux2_lora_to_diffusers", "kohya", ("norm_out", "stream_modulation", "guidance_embedder")),
    ],
    "lumina2": [("_convert_non_diffusers_lumina2_lora_to_diffusers", "AB", ("time_caption_embed", "norm_out", "x_embedder"))],
    "z_image": [("_convert_non_diffusers_z_image_lora_to_diffusers", "kohya", ("all_final_layer", "all_x_embedder", "siglip"))],
    "ltx_video": [("_convert_non_diffusers_ltxv_lora_to_diffusers", "AB", ("time_embed", "proj_in"))],
    "wan": [
        ("_convert_non_diffusers_wan_lora_to_diffusers", "comfyui", ("patch_embedding", "time_proj", "_embedder", "proj_out")),
        ("_convert_non_diffusers_wan_lora_to_diffusers", "AB", ("patch_embedding",)),
        ("_convert_musubi_wan_lora_to_diffusers", "kohya", ("patch_embedding", "condition_embedder", "proj_out")),
    ],
    "qwen_image": [("_convert_non_diffusers_qwen_lora_to_diffusers", "kohya", ()), ("_convert_non_diffusers_qwen_lora_to_diffusers", "comfyui", ())],
    "hunyuan_video": [("_convert_hunyuan_video_lora_to_diffusers", "AB", ("norm_out", "context_embedder"))],
    "sd1": [("_convert_non_diffusers_lora_to_diffusers", "kohya", ())],
    "sdxl": [("_convert_non_diffusers_lora_to_diffusers", "kohya", ())],
}


def narrowed(function, sizes):
    """The function with other sizes of a model in its code."""
    def change(value):
        if isinstance(value, types.CodeType):
            return value.replace(co_consts=tuple(map(change, value.co_consts)))
        if isinstance(value, tuple):
            return tuple(map(change, value))
        return sizes.get(value, value) if isinstance(value, int) else value
    return types.FunctionType(change(function.__code__), function.__globals__, function.__name__, function.__defaults__, function.__closure__)


class Checkpoint(dict):
    """A state dict in which what a converter asks for and the adapter did not name (tables of positions) is there all the same."""
    def __init__(self, *given):
        super().__init__(*given)
        self.missed = []

    def pop(self, key, *default):
        if key in self or default:
            return super().pop(key, *default)
        self.missed.append(key)
        return torch.zeros(2)


class Family:
    def __init__(self, name, lorakit, scratch):
        import diffusers
        from diffusers.loaders import single_file_utils
        from diffusers.models.transformers.transformer_wan_vace import WanVACETransformer3DModel
        self.name, self.lorakit, self.scratch, self.problems = name, lorakit, Path(scratch), []
        self.cls, config, converter, self.sizes = FAMILIES[name]
        torch.manual_seed(0)
        self.model = getattr(diffusers, self.cls, WanVACETransformer3DModel)(**config)
        self.component = "unet" if self.cls.startswith("UNet") else "transformer"
        self.converter = narrowed(getattr(single_file_utils, converter), self.sizes) if converter else None
        # Every module with a weight; a vector is taken as a matrix of one column.
        self.shapes = {key.removesuffix(".weight"): value.shape for key, value in self.model.state_dict().items() if key.endswith(".weight")}
        self.linear = {key for key, shape in self.shapes.items() if len(shape) > 1}

    def fail(self, what):
        self.problems.append(what)

    def run(self, *words):
        done = subprocess.run([str(self.lorakit), *map(str, words), "-q", "--force"], capture_output=True, text=True)
        if done.returncode:
            self.fail(f"`lorakit {' '.join(map(str, words[:4]))}`: {done.stderr.strip()}")
        return done.returncode == 0

    def converted(self, source, to, out):
        path = self.scratch / f"{self.name}-{out}.safetensors"
        return load_file(path) if self.run("convert", source, "--to", to, "-o", path) else {}

    def adapter(self, modules):
        pairs, draw = {}, torch.Generator().manual_seed(1)
        for key in modules:
            out, rest = self.shapes[key][0], self.shapes[key][1:] or (1,)
            pairs[f"{self.component}.{key}.lora_A.weight"] = torch.randn(RANK, *rest, generator=draw)
            pairs[f"{self.component}.{key}.lora_B.weight"] = torch.randn(out, RANK, *[1] * (len(rest) - 1), generator=draw)
        path = self.scratch / f"{self.name}.safetensors"
        save_file(pairs, path)
        return path

    def whole(self, original):
        """A checkpoint in original names of the weights `original`: name → tensor; norms are scales in some, biases count rows."""
        found = Checkpoint()
        for key, value in original.items():
            norm = key.rsplit(".", 1)[-1] in ("query_norm", "key_norm")
            found[key + (".scale" if norm else ".weight")] = value
            found[key + ".bias"] = torch.zeros(value.shape[0])
        return found

    def to_diffusers(self, original, whole=True):
        """Through diffusers' converter: name → tensor, modules with a weight only."""
        checkpoint = self.whole(original)
        if self.converter is None:
            result = dict(checkpoint)
        elif self.component == "unet":
            prefixed = Checkpoint({f"model.diffusion_model.{key}": value for key, value in checkpoint.items()})
            result = self.converter(prefixed, config=dict(self.model.config))
        else:
            result = self.converter(checkpoint)
            missed = set(checkpoint.missed) - {"pos_embed"}
            if whole and missed:
                self.fail(f"asked for by the converter, not among the original names: {sorted(missed)}")
        ends = (".weight", ".scale")
        return {key.rsplit(".", 1)[0]: value for key, value in result.items() if key.endswith(ends)}

    def compare(self, what, got, wanted):
        for label, keys in (("missing", set(wanted) - set(got)), ("too many", set(got) - set(wanted))):
            if keys:
                self.fail(f"{what}: {label}: {sorted(keys)[:8]}{' …' if len(keys) > 8 else ''}")
        for key in sorted(set(wanted) & set(got)):
            left, right = got[key].reshape(got[key].shape[0], -1), wanted[key].reshape(wanted[key].shape[0], -1)
            if left.shape != right.shape or float((left - right).abs().max()) > LIMIT:
                self.fail(f"{what}: `{key}` differs")

    def check(self, folder):
        every = self.adapter(self.shapes)
        wanted = sums(load_file(every), self.component)
        file = self.converted(every, "comfyui", "comfyui")
        comfyui = sums(file, "diffusion_model")
        original = {key: (value.shape[0], *file[f"diffusion_model.{key}.lora_down.weight"].shape[1:]) for key, value in comfyui.items()}
        self.compare("single file", self.to_diffusers(comfyui), wanted)
        back = self.converted(self.scratch / f"{self.name}-comfyui.safetensors", "diffusers", "back")
        self.compare("comfyui → diffusers", sums(back, self.component), wanted)
        if folder:
            self.record(Path(folder), comfyui)
        for name, spelling, unknown in ADAPTERS.get(self.name, []):
            self.adapters(name, spelling, [key for key in sorted(self.linear) if not any(part in key for part in unknown)])
        self.merges({key: original[key] for key in comfyui if comfyui[key].shape[1] > 1})
        return self.problems

    def adapters(self, name, spelling, modules):
        """Through diffusers' converter `name`, and through lorakit."""
        from diffusers.loaders import lora_conversion_utils
        from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
        source = self.adapter(modules)
        wanted = sums(load_file(source), self.component)
        file = self.converted(source, "kohya" if spelling == "kohya" else "comfyui", "own")
        back = self.converted(self.scratch / f"{self.name}-own.safetensors", "diffusers", "back")
        self.compare(f"{spelling} → diffusers", sums(back, self.component), wanted)
        if spelling == "AB":
            file = {key.replace("lora_down", "lora_A").replace("lora_up", "lora_B"): value for key, value in file.items() if not key.endswith("alpha")}
        converter = narrowed(getattr(lora_conversion_utils, name), self.sizes)
        try:
            if self.component == "unet":
                if self.name == "sdxl":
                    file = lora_conversion_utils._maybe_map_sgm_blocks_to_diffusers(file, self.model.config)
                result, _ = converter(file)
                result = {key.replace(".processor", ""): value for key, value in convert_unet_state_dict_to_peft(result).items()}
            else:
                result = converter(dict(file))
        except (ValueError, KeyError, AssertionError) as error:
            return self.fail(f"{name}: {type(error).__name__}: {error}")
        prefix = f"{self.component}."
        self.compare(name, sums({key if key.startswith(prefix) else prefix + key: value for key, value in result.items()}, self.component), wanted)

    def merges(self, shapes):
        """Into a single file and into a folder of diffusers, from every spelling."""
        adapter = self.adapter(sorted(self.linear))
        for to in ("comfyui", "kohya"):
            self.converted(adapter, to, to)
        draw = torch.Generator().manual_seed(2)
        conv = {key: self.shapes[key] for key in self.linear}
        original = {key: torch.randn(shape, generator=draw) for key, shape in shapes.items()}
        single = self.scratch / f"{self.name}-base.safetensors"
        save_file({f"model.diffusion_model.{key}.weight": value.contiguous() for key, value in original.items()}, single)
        before = {key: value for key, value in self.to_diffusers(original, whole=False).items() if key in conv}
        split = self.scratch / f"{self.name}-model" / self.component
        split.mkdir(parents=True, exist_ok=True)
        save_file({f"{key}.weight": value.reshape(conv[key]).contiguous() for key, value in before.items()}, split / "diffusion_pytorch_model.safetensors")
        (split / "config.json").write_text(json.dumps({"_class_name": self.cls}))
        change = sums(load_file(adapter), self.component)
        wanted = {key: before[key].reshape(before[key].shape[0], -1) + change[key] for key in before}
        for spelling in ("", "-comfyui", "-kohya"):
            source = self.scratch / f"{self.name}{spelling}.safetensors"
            for base in (single, split):
                out = self.scratch / "merged"
                if not self.run("merge", base, source, "-o", out if base is split else out.with_suffix(".safetensors")):
                    continue
                if base is split:
                    got = {key.removesuffix(".weight"): value for key, value in load_file(out / "diffusion_pytorch_model.safetensors").items()}
                else:
                    merged = load_file(out.with_suffix(".safetensors"))
                    got = {key: value for key, value in self.to_diffusers({key.removeprefix("model.diffusion_model.").removesuffix(".weight"): value for key, value in merged.items()}, whole=False).items() if key in conv}
                self.compare(f"merge of {source.name} into {base.name}", got, wanted)

    def record(self, folder, original):
        """Rows of every original weight → rows of diffusers' weights, found by their numbers."""
        names = sorted(original)
        marked = {key: torch.arange(original[key].shape[0]).float()[:, None].repeat(1, original[key].shape[1]) + 1000 * at for at, key in enumerate(names)}
        places = {key: [] for key in names}
        for module, value in self.to_diffusers(marked).items():
            rows = value.reshape(value.shape[0], -1)[:, 0].long().tolist()
            at = 0
            while at < len(rows):
                end = at + 1
                while end < len(rows) and rows[end] == rows[at] + end - at:
                    end += 1
                places[names[rows[at] // 1000]].append((rows[at] % 1000, end - at, module, at))
                at = end
        lines = []
        for key in names:
            rows, columns = original[key].shape
            parts = sorted(places[key])
            if len(parts) == 1 and parts[0][:2] == (0, rows):
                lines.append(f"{key} = {parts[0][2]}")
            else:
                lines.append(f"{key} {rows} {columns} = " + ", ".join(f"{take}..{take + count} {module} {at}" for take, count, module, at in parts))
        folder.mkdir(exist_ok=True)
        (folder / f"{self.name}.txt").write_text("\n".join(lines) + "\n")


def sums(pairs, prefix):
    """Module → α/r · B·A, for any spelling."""
    found = {}
    for down, up in ((".lora_A.weight", ".lora_B.weight"), (".lora_down.weight", ".lora_up.weight")):
        for key in [key for key in pairs if key.endswith(down)]:
            module = key.removesuffix(down)
            a, b = pairs[key].float(), pairs[module + up].float()
            scale = float(pairs.get(f"{module}.alpha", torch.tensor(float(a.shape[0])))) / a.shape[0]
            found[module.removeprefix(f"{prefix}.")] = scale * b.reshape(b.shape[0], -1) @ a.reshape(a.shape[0], -1)
    return found


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--lorakit", type=Path, default=DEFAULT_BINARY)
    ap.add_argument("--write", type=Path)
    ap.add_argument("families", nargs="*", metavar="FAMILY")
    a = ap.parse_args()
    try:
        import diffusers  # noqa: F401
    except ImportError as missing:
        print(f"SKIPPED: diffusers ({missing})", file=sys.stderr)
        sys.exit(0)
    failed = False
    for name in a.families or FAMILIES:
        with tempfile.TemporaryDirectory() as scratch:
            family = Family(name, a.lorakit, scratch)
            problems = family.check(a.write)
        print(f"{name}: {len(family.shapes)} weights, {'the same everywhere' if not problems else 'FAILED'}")
        for problem in problems:
            print(f"    {problem}")
        failed |= bool(problems)
    sys.exit("FAILED" if failed else 0)


if __name__ == "__main__":
    main()
