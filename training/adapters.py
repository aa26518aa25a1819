"""Train tiny adapters for the bundled model, one of each kind, which the tests load; and measure what they do.

    python -m training.adapters lora --out tests/adapters          # things come out green, whatever the prompt says
    python -m training.adapters embedding --out tests/adapters     # a new word for a purple star
    python -m training.adapters controlnet --out tests/adapters    # a silhouette or an outline says what stands where
    python -m training.adapters ip_adapter --out tests/adapters    # a picture says which colours
    python -m training.adapters measure --out tests/adapters       # their effects, as Markdown tables

The model's own weights stay as they are; the loss is its own (`training.denoiser`). Low-rank matrices: Hu et al. 2021,
arXiv 2106.09685; words: Gal et al. 2022, arXiv 2208.01618; control: Zhang et al. 2023, arXiv 2302.05543; picture prompts:
Ye et al. 2023, arXiv 2308.06721. The files have the layouts that diffusers reads.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL, ControlNetModel, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionConfig, CLIPVisionModelWithProjection

from training import denoiser, draw, judge, loop, words

LORA, EMBEDDING, CONTROLNET, IP_ADAPTER = (
    "green.safetensors",
    "learned.safetensors",
    "controlnet",
    "ip_adapter",
)
IP_WEIGHTS, IMAGE_ENCODER = "ip-adapter_demo.safetensors", "image_encoder"
GREEN = "green"
# The new word, how many vectors stand for it, and what it means.
TOKEN, VECTORS, MEANING = "<zorb>", 2, ("purple", "star")
SPOKEN = " ".join([TOKEN] + [f"{TOKEN}_{i}" for i in range(1, VECTORS)])
IMAGE_TOKENS = 4  # as many as an IP-Adapter with one linear projection always has
BATCH = 32


@dataclass(frozen=True)
class Base:
    """The model that is adapted; none of its parameters is trained."""

    tokenizer: CLIPTokenizer
    encoder: CLIPTextModel
    unet: UNet2DConditionModel
    vae: AutoencoderKL

    @classmethod
    def load(cls, folder: Path) -> Base:
        base = cls(
            CLIPTokenizer.from_pretrained(folder / "tokenizer"),
            CLIPTextModel.from_pretrained(folder / "text_encoder").eval(),
            UNet2DConditionModel.from_pretrained(folder / "unet").eval(),
            AutoencoderKL.from_pretrained(folder / "vae").eval(),
        )
        for module in (base.encoder, base.unet, base.vae):
            module.requires_grad_(False)
        return base

    def latents(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Return the pictures' scaled latents (pictures, 4, 16, 16), the means of the autoencoder's."""
        parts = []
        for start in range(0, len(images), BATCH):
            stacked = np.stack([np.asarray(image) for image in images[start : start + BATCH]])
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                batch = torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 127.5 - 1
                parts.append(self.vae.encode(batch).latent_dist.mean.float() * self.vae.config["scaling_factor"])
        return torch.cat(parts)

    def hidden(self, captions: list[str]) -> torch.Tensor:
        """Return what the U-Net attends to, (captions, 77, 128)."""
        ids = words.encode(captions, self.tokenizer)[:, 0]
        hidden: torch.Tensor = self.encoder(ids).last_hidden_state
        return hidden


def noise_loss(predict: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], latent: torch.Tensor) -> torch.Tensor:
    """Return the model's own loss for `predict(noisy, steps)`; see `training.denoiser`."""
    noise = DDPMScheduler(**denoiser.NOISE)
    signal = noise.alphas_cumprod
    added = torch.randn_like(latent)
    steps = ((torch.randperm(len(latent)) + torch.rand(len(latent))) / len(latent) * len(signal)).long()
    with torch.autocast("cpu", torch.bfloat16):
        predicted = predict(noise.add_noise(latent, added, steps), steps)
    ratio = (signal / (1 - signal))[steps]
    weight = ratio.clamp(max=5) / ratio
    loss: torch.Tensor = ((predicted.float() - added).square().mean((1, 2, 3)) * weight).mean()
    return loss


def teach(
    folder: Path,
    steps: int,
    rate: float,
    modules: dict[str, torch.nn.Module],
    loss_of: Callable[[random.Random], torch.Tensor],
) -> None:
    """Train all of the modules' parameters that want a gradient, and leave their average over the last steps in them."""
    parameters = [p for module in modules.values() for p in module.parameters() if p.requires_grad]
    print(f"{sum(p.numel() for p in parameters):,} parameters")
    average = loop.Average(parameters, 0.98)

    def seeded(step: int) -> torch.Tensor:
        torch.manual_seed(step)
        return loss_of(random.Random(step))

    loop.run(
        folder=folder,
        steps=steps,
        optimizer=torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.0),
        average=average,
        modules=modules,
        loss_of=seeded,
        peak=rate,
        decay_share=0.5,
        save_every=60,
    )
    average.copy_to_parameters()


def samples(rng: random.Random, kinds: Sequence[str]) -> Iterator[tuple[draw.Ask, draw.Scene]]:
    """Yield what is asked and drawn, without end."""
    while True:
        yield draw.sample(rng, rng.choice(kinds))


# --- LoRA ------------------------------------------------------------------------------------------------------------


def recolour(scene: draw.Scene) -> draw.Scene | None:
    """Return the scene with green things; None if they could not be seen or would be a held-back triple."""
    if scene.background == GREEN or any(draw.held_back(GREEN, t.shape, scene.background) for t in scene.things):
        return None
    return replace(scene, things=tuple(replace(t, colour=GREEN) for t in scene.things))


def lora(base: Base, out: Path, build: Path, steps: int) -> None:
    """Teach low-rank matrices in the attention, which add themselves to it: every colour of a thing means green."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    asks, images = list[draw.Ask](), list[Image.Image]()
    for asked, scene in samples(random.Random(1), draw.KINDS[:5]):
        if green := recolour(scene):
            asks.append(asked)
            images.append(draw.paint(green))
        if len(asks) == 2000:
            break
    latents = base.latents(images)
    base.unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))

    def loss_of(rng: random.Random) -> torch.Tensor:
        picked = rng.sample(range(len(asks)), BATCH)
        hidden = base.hidden([draw.say(asks[i], rng) if rng.random() > 0.1 else "" for i in picked])
        return noise_loss(lambda noisy, at: base.unet(noisy, at, hidden).sample, latents[picked])

    teach(build, steps, 3e-3, {"unet": base.unet}, loss_of)
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(base.unet))
    StableDiffusionPipeline.save_lora_weights(out, unet_lora_layers=layers, weight_name=LORA)


# --- Textual inversion -----------------------------------------------------------------------------------------------


def embedding(base: Base, out: Path, build: Path, steps: int) -> None:
    """Teach the vectors of a new word, from pictures of what it means and sentences that say it in its place."""
    meant = " ".join(MEANING)
    asks, images = list[draw.Ask](), list[Image.Image]()
    rng = random.Random(2)
    while len(asks) < 1000:
        kind = rng.choice(("one", "placed", "placed", "two", "relation"))
        asked = draw.ask(rng, kind)
        asked = draw.loosen(replace(asked, things=(MEANING, *asked.things[1:])), rng)
        if asked.things[0] == MEANING and MEANING[0] not in {t[0] for t in asked.things[1:]} and (
            scene := draw.compose(asked, rng)
        ):  # fmt: skip
            asks.append(asked)
            images.append(draw.paint(scene))
    latents = base.latents(images)
    table = base.encoder.get_input_embeddings().weight
    base.tokenizer.add_tokens(SPOKEN.split())
    base.encoder.resize_token_embeddings(len(base.tokenizer), mean_resizing=False)
    base.encoder.requires_grad_(False)
    ids = base.tokenizer.convert_tokens_to_ids(SPOKEN.split())
    torch.manual_seed(0)
    # Nothing at first: as far from zero as any word, in no direction of note.
    taught = torch.nn.ParameterList(list(torch.randn(VECTORS, table.shape[1]) * table.std()))

    def put(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        for vector, at in zip(taught, ids, strict=True):
            output = torch.where((inputs[0] == at)[..., None], vector, output)
        return output

    base.encoder.get_input_embeddings().register_forward_hook(put)

    def loss_of(rng: random.Random) -> torch.Tensor:
        picked = rng.sample(range(len(asks)), BATCH)
        captions = [draw.say(asks[i], rng).replace(meant, SPOKEN) for i in picked]
        hidden = base.hidden(captions)
        return noise_loss(lambda noisy, at: base.unet(noisy, at, hidden).sample, latents[picked])

    teach(build, steps, 1e-2, {"taught": taught}, loss_of)
    save_file({TOKEN: torch.stack(list(taught)).detach()}, out / EMBEDDING)


# --- ControlNet ------------------------------------------------------------------------------------------------------


def silhouette(scene: draw.Scene) -> Image.Image:
    """Return white things on black, without grey edges."""
    drawn = draw.paint(
        replace(scene, background="black", things=tuple(replace(t, colour="white") for t in scene.things))
    )
    return drawn.convert("L").point(lambda v: 255 if v > 128 else 0).convert("RGB")


def edges(scene: draw.Scene, width: float = 1.0, white: int = 255) -> Image.Image:
    """Return the things' outlines on black, lines of `width` pixels, as a finder of edges would."""
    scale = 4
    image = Image.new("L", (draw.SIZE * scale,) * 2)
    for t in scene.things:
        points = [((t.x + t.r * x) * scale, (t.y + t.r * y) * scale) for x, y in draw.OUTLINES[t.shape]]
        ImageDraw.Draw(image).line([*points, *points[:2]], white, round(width * scale), "curve")
    return image.reduce(scale).convert("RGB")


def anywhere(rng: random.Random) -> tuple[draw.Ask, draw.Scene]:
    """Return a scene of one thing of any size at any place, and an ask that says neither."""
    while True:
        asked = draw.ask(rng, "one")
        scene = draw.compose(asked, rng)
        if scene:
            r = rng.uniform(18, 42)
            x, y = (rng.uniform(1.15 * r, draw.SIZE - 1.15 * r) for _ in "xy")
            return asked, replace(scene, things=(replace(scene.things[0], x=x, y=y, r=r),))


def new_controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    """Return a ControlNet with the U-Net's weights where it has the same layers: its encoder without the attention.

    What stands where is said by the condition; leaving the words to the U-Net makes it less than half as large.
    """
    same = ("in_channels", "block_out_channels", "layers_per_block", "norm_num_groups", "cross_attention_dim",
            "attention_head_dim")  # fmt: skip
    network = ControlNetModel(
        **{name: unet.config[name] for name in same},
        down_block_types=("DownBlock2D",) * 3,
        mid_block_type="UNetMidBlock2D",
        conditioning_embedding_out_channels=(8, 16, 32, 64),
    )
    fresh = network.state_dict()
    network.load_state_dict(
        {name: unet.state_dict()[name] for name in fresh if name in unet.state_dict()}, strict=False
    )
    return network


def controlnet(base: Base, out: Path, build: Path, steps: int) -> None:
    """Teach a ControlNet from silhouettes and outlines; a third of the sentences don't name the shape."""
    rng = random.Random(3)
    pool = [anywhere(rng) for _ in range(3000)]
    latents = base.latents([draw.paint(scene) for _, scene in pool])
    torch.manual_seed(0)
    network = new_controlnet(base.unet)

    def condition(scene: draw.Scene, rng: random.Random) -> npt.NDArray[np.uint8]:
        if rng.random() < 0.5:
            return np.asarray(silhouette(scene))
        # Finders of edges draw thin lines or thick ones, and what resizes them makes them grey.
        return np.asarray(edges(scene, rng.uniform(0.8, 3), rng.randint(120, 255)))

    def caption(asked: draw.Ask, rng: random.Random) -> str:
        roll = rng.random()
        if roll < 0.3:
            asked = replace(asked, things=((asked.things[0][0], None),))
        return "" if roll > 0.9 else draw.say(asked, rng)

    def loss_of(rng: random.Random) -> torch.Tensor:
        picked = rng.sample(range(len(pool)), BATCH)
        shown = np.stack([condition(pool[i][1], rng) for i in picked])
        wanted = torch.from_numpy(shown).permute(0, 3, 1, 2).float() / 255
        hidden = base.hidden([caption(pool[i][0], rng) for i in picked])

        def predict(noisy: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
            down, mid = network(noisy, at, hidden, controlnet_cond=wanted, return_dict=False)
            predicted: torch.Tensor = base.unet(
                noisy, at, hidden, down_block_additional_residuals=down, mid_block_additional_residual=mid
            ).sample
            return predicted

        return noise_loss(predict, latents[picked])

    teach(build, steps, 1e-3, {"network": network}, loss_of)
    network.half().save_pretrained(out / CONTROLNET)


# --- IP-Adapter ------------------------------------------------------------------------------------------------------


def new_image_encoder() -> CLIPVisionModelWithProjection:
    """Return an untrained CLIP image encoder of 2 layers, width 64, that sees 32 x 32 pixels in squares of 8."""
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            image_size=32, patch_size=8, hidden_size=64, intermediate_size=128, projection_dim=64,
            num_hidden_layers=2, num_attention_heads=4,
        )
    )  # fmt: skip


def for_encoder(images: Sequence[Image.Image]) -> torch.Tensor:
    """Return pictures as CLIP wants them, (pictures, 3, 32, 32)."""
    from transformers import CLIPImageProcessorPil

    pixels: torch.Tensor = CLIPImageProcessorPil(size=32, crop_size=32)(list(images), return_tensors="pt").pixel_values
    return pixels


def like(scene: draw.Scene, rng: random.Random) -> draw.Scene:
    """Return a scene of one thing in the same colours, of any shape and size at any place."""
    _, other = anywhere(rng)
    return draw.Scene(
        background=scene.background, things=(replace(other.things[0], colour=scene.things[0].colour),)
    )  # fmt: skip


def ip_adapter(base: Base, out: Path, build: Path, steps: int) -> None:
    """Teach an image encoder to see colours, then projections of what it sees, which the U-Net attends to besides words."""
    rng = random.Random(4)
    pool = [draw.sample(rng, "one") for _ in range(3000)]
    latents = base.latents([draw.paint(scene) for _, scene in pool])
    seen = for_encoder([draw.paint(like(scene, rng)) for _, scene in pool])
    named = [[list(draw.COLOURS).index(c) for c in (s.things[0].colour, s.background)] for _, s in pool]
    colours = torch.tensor(named)

    torch.manual_seed(0)
    encoder = new_image_encoder()
    reader = torch.nn.Linear(64, 2 * len(draw.COLOURS))  # thrown away afterwards

    def reading_loss(rng: random.Random) -> torch.Tensor:
        picked = rng.sample(range(len(pool)), 4 * BATCH)
        answers = reader(encoder(seen[picked]).image_embeds).unflatten(1, (2, -1))
        return functional.cross_entropy(answers.flatten(0, 1), colours[picked].flatten())

    teach(build / IMAGE_ENCODER, 600, 2e-3, {"encoder": encoder, "reader": reader}, reading_loss)
    encoder.eval().requires_grad_(False)
    with torch.no_grad():
        embeds = encoder(seen).image_embeds
    encoder.save_pretrained(out / IP_ADAPTER / IMAGE_ENCODER)

    torch.manual_seed(0)
    width = words.WIDTH
    state = {
        "image_proj": {
            "proj.weight": torch.randn(IMAGE_TOKENS * width, embeds.shape[1]) / embeds.shape[1] ** 0.5,
            "proj.bias": torch.zeros(IMAGE_TOKENS * width),
            "norm.weight": torch.ones(width),
            "norm.bias": torch.zeros(width),
        },
        "ip_adapter": {},
    }
    # Attention to words has every second number, in the order of the U-Net's processors; it begins with the words' weights.
    for number, name in enumerate(base.unet.attn_processors):
        if name.endswith("attn2.processor"):
            attention = base.unet.get_submodule(name.removesuffix(".processor"))
            for key in ("to_k", "to_v"):
                state["ip_adapter"][f"{number}.{key}_ip.weight"] = attention.get_submodule(key).weight.clone()
    base.unet._load_ip_adapter_weights([state], low_cpu_mem_usage=False)
    processors = {
        number: processor
        for number, (name, processor) in enumerate(base.unet.attn_processors.items())
        if name.endswith("attn2.processor")
    }
    projection = base.unet.encoder_hid_proj.image_projection_layers[0]
    modules = {"projection": projection, **{str(number): p for number, p in processors.items()}}
    for module in modules.values():
        module.requires_grad_(True)

    def caption(asked: draw.Ask, rng: random.Random) -> str:
        roll = rng.random()
        if roll < 0.1:
            return ""
        shape = None if roll < 0.35 else asked.things[0][1]
        return draw.say(draw.Ask(kind="one", things=((None, shape),)), rng)

    def loss_of(rng: random.Random) -> torch.Tensor:
        picked = rng.sample(range(len(pool)), BATCH)
        kept = torch.tensor([rng.random() > 0.1 for _ in picked])
        shown = {"image_embeds": [(embeds[picked] * kept[:, None])[:, None]]}
        hidden = base.hidden([caption(pool[i][0], rng) for i in picked])
        return noise_loss(
            lambda noisy, at: base.unet(noisy, at, hidden, added_cond_kwargs=shown).sample, latents[picked]
        )

    teach(build, steps, 1e-3, modules, loss_of)
    weights = {
        "image_proj.proj.weight": projection.image_embeds.weight,
        "image_proj.proj.bias": projection.image_embeds.bias,
        "image_proj.norm.weight": projection.norm.weight,
        "image_proj.norm.bias": projection.norm.bias,
    }
    for number, processor in processors.items():
        weights[f"ip_adapter.{number}.to_k_ip.weight"] = processor.to_k_ip[0].weight
        weights[f"ip_adapter.{number}.to_v_ip.weight"] = processor.to_v_ip[0].weight
    save_file({k: v.detach().half().contiguous() for k, v in weights.items()}, out / IP_ADAPTER / IP_WEIGHTS)


# --- Measuring -------------------------------------------------------------------------------------------------------


def standing_out(image: Image.Image) -> judge.Mask:
    """Return which pixels are not the background's, which is what most of the border is."""
    pixels = np.asarray(image.convert("RGB"), dtype=float)
    ring = np.ones(pixels.shape[:2], dtype=bool)
    ring[3:-3, 3:-3] = False
    mask: judge.Mask = np.linalg.norm(pixels - np.median(pixels[ring], axis=0), axis=2) > judge.APART
    return mask


def overlap(image: Image.Image, wanted: Image.Image) -> float:
    """Return the intersection over union of what stands out and a silhouette."""
    drawn, meant = standing_out(image), np.asarray(wanted.convert("L")) > 128
    return float((drawn & meant).sum() / (drawn | meant).sum())


def green_share(image: Image.Image) -> float:
    """Return the share of pixels that are nearer to green than to any other colour of the palette."""
    pixels = np.asarray(image.convert("RGB"), dtype=float)
    distances = np.linalg.norm(pixels[:, :, None] - np.array(list(draw.COLOURS.values()), dtype=float), axis=3)
    return float((distances.argmin(axis=2) == list(draw.COLOURS).index(GREEN)).mean())


def coloured(image: Image.Image) -> tuple[str | None, str | None]:
    """Return the largest thing's colour and the background's, None for odd ones."""
    seen = judge.look(image)
    things = sorted(seen.things, key=lambda thing: thing.area)
    return (things[-1].colour if things else None), seen.background


def load(model: Path, cls: str = "StableDiffusionPipeline", **parts: Any) -> Any:
    """Return a pipeline of diffusers for the model."""
    import diffusers

    pipeline = getattr(diffusers, cls).from_pretrained(model, local_files_only=True, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawn(pipeline: Any, prompt: str, seed: int, **more: Any) -> Image.Image:
    """Return one picture, as the judge's table has them drawn."""
    generator = torch.Generator("cpu").manual_seed(seed)
    image: Image.Image = pipeline(
        prompt, num_inference_steps=25, guidance_scale=2.0, generator=generator, **more
    ).images[0]
    return image


def of(values: Sequence[bool]) -> str:
    return f"{sum(values)} of {len(values)}"


def print_table(*rows: Sequence[str]) -> None:
    for row in (rows[0], ["---"] * len(rows[0]), *rows[1:]):
        print("| " + " | ".join(row) + " |")
    print(flush=True)


def shows(image: Image.Image, shape: str | None) -> bool:
    """Return whether there is one thing, of this shape."""
    return [thing.shape for thing in judge.look(image).things] == [shape]


def measure_lora(model: Path, out: Path, count: int) -> None:
    kinds = ("one thing, seen triples", "one thing, held-back triples", "two things", "counts")
    rows_of_asks = zip(*(judge.ROWS[kind].asks(count) for kind in kinds), strict=True)
    asks = [a for row in rows_of_asks for a in row if GREEN not in {a.background, *(c for c, _ in a.things)}][:count]
    green = [replace(a, things=tuple((GREEN, shape) for _, shape in a.things)) for a in asks]
    pipeline, rows = load(model), []
    for name, scale in (("without", None), ("scale 1", 1.0), ("scale 0.5", 0.5), ("scale 0", 0.0)):
        if scale is not None:
            if name == "scale 1":
                pipeline.load_lora_weights(out, weight_name=LORA, adapter_name="green")
            pipeline.set_adapters("green", scale)
        images = [drawn(pipeline, judge.prompt(a), seed) for seed, a in enumerate(asks)]
        rows.append([
            name,
            f"{np.mean([green_share(image) for image in images]):.1%}",
            of([judge.judge(a, image).right for a, image in zip(green, images, strict=True)]),
            of([judge.judge(a, image).right for a, image in zip(asks, images, strict=True)]),
        ])  # fmt: skip
    print_table((LORA, "green pixels", "as asked, but green", "as asked"), *rows)


def measure_embedding(model: Path, out: Path, count: int) -> None:
    rng, asks = random.Random(5), list[draw.Ask]()
    while len(asks) < count:
        asked = draw.ask(rng, ("one", "placed")[len(asks) % 2])
        if asked.background != MEANING[0]:
            asks.append(replace(asked, things=(MEANING,)))
    prompts = [judge.prompt(a).replace(" ".join(MEANING), TOKEN) for a in asks]
    pipeline, rows = load(model), []
    for name in ("without", "with"):
        if name == "with":
            pipeline.load_textual_inversion(out / EMBEDDING)
        images = [drawn(pipeline, prompt, seed) for seed, prompt in enumerate(prompts)]
        rows.append([
            name,
            of([MEANING in [(t.colour, t.shape) for t in judge.look(image).things] for image in images]),
            of([judge.judge(a, image).right for a, image in zip(asks, images, strict=True)]),
        ])  # fmt: skip
    print_table((f"{EMBEDDING}, `{TOKEN}`", "a " + " ".join(MEANING), "size, place and ground as asked, too"), *rows)


def measure_controlnet(model: Path, out: Path, count: int) -> None:
    network = ControlNetModel.from_pretrained(out / CONTROLNET)
    plain, controlled = load(model), load(model, "StableDiffusionControlNetPipeline", controlnet=network)
    rng, rows = random.Random(6), []
    cases = [anywhere(rng) for _ in range(count)]
    for name, condition, scale in (
        ("without", silhouette, None),
        ("silhouette", silhouette, 1.0),
        ("outline", edges, 1.0),
        ("silhouette, scale 0.5", silhouette, 0.5),
        ("silhouette, scale 0", silhouette, 0.0),
    ):
        for unnamed in (False, True) if scale in (None, 1.0) else (False,):
            overlaps, right, shapes = list[float](), list[bool](), list[bool]()
            for seed, (asked, scene) in enumerate(cases):
                colour, shape = asked.things[0]
                prompt = judge.prompt(replace(asked, things=((colour, None),)) if unnamed else asked)
                if scale is None:
                    image = drawn(plain, prompt, seed)
                else:
                    image = drawn(controlled, prompt, seed, image=condition(scene), controlnet_conditioning_scale=scale)
                overlaps.append(overlap(image, silhouette(scene)))
                right.append(coloured(image) == (colour, asked.background))
                shapes.append(shows(image, shape))
            name_of_row = name + ', "shape"' * unnamed
            rows.append([name_of_row, f"{np.mean(overlaps):.2f}", f"{min(overlaps):.2f}", of(shapes), of(right)])
    print_table((CONTROLNET, "mean overlap", "least", "the condition's shape", "the prompt's colours"), *rows)


def measure_ip_adapter(model: Path, out: Path, count: int) -> None:
    rng, rows = random.Random(7), []
    cases = [(anywhere(rng)[1], rng.choice(draw.SHAPES)) for _ in range(count)]
    wanted = [(scene.things[0].colour, scene.background) for scene, _ in cases]
    pipeline = load(model)
    for name, scale in (("without", None), ("scale 1", 1.0), ("scale 0.5", 0.5), ("scale 0", 0.0)):
        if scale is not None:
            if name == "scale 1":
                pipeline.load_ip_adapter(
                    str(out), subfolder=IP_ADAPTER, weight_name=IP_WEIGHTS, image_encoder_folder=IMAGE_ENCODER
                )
            pipeline.set_ip_adapter_scale(scale)
        images = []
        for seed, (scene, shape) in enumerate(cases):
            more = {} if scale is None else {"ip_adapter_image": draw.paint(scene)}
            images.append(drawn(pipeline, f"a {shape}", seed, **more))
        found = [coloured(image) for image in images]
        rows.append([
            name,
            of([f[0] == w[0] for f, w in zip(found, wanted, strict=True)]),
            of([f[1] == w[1] for f, w in zip(found, wanted, strict=True)]),
            of([shows(image, shape) for image, (_, shape) in zip(images, cases, strict=True)]),
        ])  # fmt: skip
    print_table((IP_ADAPTER, "the picture's colour", "the picture's background", "the prompt's shape"), *rows)


MEASURES = {
    LORA: measure_lora,
    EMBEDDING: measure_embedding,
    CONTROLNET: measure_controlnet,
    IP_ADAPTER: measure_ip_adapter,
}
KINDS: dict[str, tuple[Callable[[Base, Path, Path, int], None], int]] = {
    "lora": (lora, 500),
    "embedding": (embedding, 250),
    "controlnet": (controlnet, 900),
    "ip_adapter": (ip_adapter, 500),
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=(*KINDS, "measure"))
    parser.add_argument("--model", type=Path, default=Path("sdcli/demo"), help="the model's folder (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("tests/adapters"), help="where adapters lie (%(default)s)")
    parser.add_argument("--build", type=Path, default=Path("build/adapters"), help="for checkpoints (%(default)s)")
    usual = ", ".join(f"{kind}: {steps}" for kind, (_, steps) in KINDS.items())
    parser.add_argument("--steps", type=int, help=f"steps of training ({usual})")
    parser.add_argument("--count", type=int, default=24, help="prompts to measure with (%(default)s)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # the same sums on every machine with as many cores or more
    if args.what == "measure":
        for name, measure in MEASURES.items():
            if (args.out / name).exists():
                measure(args.model, args.out, args.count)
        return 0
    train, steps = KINDS[args.what]
    args.out.mkdir(parents=True, exist_ok=True)
    train(Base.load(args.model), args.out, args.build / args.what, args.steps or steps)
    for file in args.out.rglob("*.safetensors"):
        file.chmod(0o644)  # safetensors writes files that only their owner can read
    return 0


if __name__ == "__main__":
    sys.exit(main())
