"""Train the noise predictor with its text encoder, and put the finished model together.

    python -m training.denoiser --autoencoder build/autoencoder --words build/words --out build/denoiser --steps 5000

Noise is added to a random picture's latent at a random one of 1,000 scaled-linear steps, and the U-Net predicts it
(Ho et al. 2020, arXiv 2006.11239; Rombach et al. 2022, arXiv 2112.10752). The caption is dropped for a tenth, so that
classifier-free guidance works (Ho and Salimans 2022, arXiv 2207.12598). The loss is weighted by the signal-to-noise ratio
cut at 5 (Hang et al. 2023, arXiv 2303.09556). A linear map, thrown away afterwards, must read off a sentence's end what is
where: words are encoded from left to right, so that the end alone knows that the first thing of "a star below a heart" is
below, and without the map that was learned last and slowly. At each checkpoint the averaged weights lie in `OUT/model` as a folder
that diffusers loads.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from rich.progress import track
from transformers import CLIPTextModel, CLIPTokenizer

from training import draw, loop, words

NOISE = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
# How many of the pictures are of a kind, and how often a kind is shown: places and how two things stand are learned last.
POOL = {"one": 0.15, "placed": 0.2, "two": 0.25, "relation": 0.22, "count": 0.18}
SHARES = {"one": 0.12, "placed": 0.25, "two": 0.18, "relation": 0.27, "count": 0.18}


def new_unet() -> UNet2DConditionModel:
    """Return an untrained U-Net over 16 x 16 latents that attends to words at 8 x 8 and, in its middle, at 4 x 4."""
    return UNet2DConditionModel(
        sample_size=draw.SIZE // 8,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        block_out_channels=(64, 128, 128),
        layers_per_block=1,
        attention_head_dim=4,
        cross_attention_dim=words.WIDTH,
        norm_num_groups=16,
    )


def cache(vae: AutoencoderKL, count: int, seed: int, file: Path) -> tuple[list[draw.Ask], torch.Tensor]:
    """Return `count` asks and their latents (count, 8, 16, 16): mean and standard deviation, scaled. Kept in `file`."""
    rng = random.Random(seed + 1)
    kinds = rng.choices(list(POOL), list(POOL.values()), k=count)
    samples = (draw.sample(rng, kind) for kind in kinds)
    if file.exists():
        return [asked for asked, _ in samples], torch.load(file, weights_only=True)
    asks, latents, batch = (
        list[draw.Ask](),
        torch.empty(count, 8, draw.SIZE // 8, draw.SIZE // 8, dtype=torch.float16),
        100,
    )
    for start in track(range(0, count, batch), description="latents"):
        part = [next(samples) for _ in range(min(batch, count - start))]
        asks += [asked for asked, _ in part]
        images = np.stack([np.asarray(draw.paint(scene)) for _, scene in part])
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1).latent_dist
        both = torch.cat([posterior.mean, posterior.std], 1).float() * vae.config["scaling_factor"]
        latents[start : start + len(part)] = both.half()
    torch.save(latents, file)
    return asks, latents


def export(
    folder: Path,
    tokenizer: CLIPTokenizer,
    encoder: CLIPTextModel,
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    words_folder: Path,
) -> None:
    """Write the model in diffusers' layout: U-Net and autoencoder in fp16, text encoder in fp32.

    All in fp16 would make a plain load, which converts diffusers' modules to fp32 and leaves transformers' as they are
    stored, mix its dtypes.
    """
    # A solver that is as good as done at 25 steps, and draws with one.
    # `steps_offset` is what a plain load warns of when it is not 1, and the bound, which is never met, keeps infinity out
    # of the JSON; linear spacing uses neither.
    scheduler = DPMSolverMultistepScheduler(**NOISE, steps_offset=1, lambda_min_clipped=-10.0)
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    fresh = folder.with_suffix(".tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    pipeline.save_pretrained(fresh)
    for part, module in (("unet", unet), ("vae", vae)):
        state = {k: v.half() for k, v in module.state_dict().items()}
        with torch.no_grad():
            half = type(module).from_config(module.config)
            half.load_state_dict(state)
            half.half().save_pretrained(fresh / part)
    shutil.copytree(words_folder / "tokenizer", fresh / "tokenizer", dirs_exist_ok=True)
    for config in fresh.glob("*/config.json"):
        # Where it was read from is nobody's business.
        kept = {k: v for k, v in json.loads(config.read_text()).items() if k != "_name_or_path"}
        config.write_text(json.dumps(kept, indent=2) + "\n")
    for file in fresh.rglob("*"):
        if file.is_file():
            file.chmod(0o644)  # safetensors writes files that only their owner can read
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--autoencoder", type=Path, default=Path("build/autoencoder"))
    parser.add_argument("--words", type=Path, default=Path("build/words"))
    parser.add_argument("--out", type=Path, default=Path("build/denoiser"))
    parser.add_argument("--pictures", type=int, default=60_000)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument(
        "--decay-share", type=float, default=0.3, help="the last share of steps, over which the rate falls"
    )
    parser.add_argument("--average", type=float, default=0.998)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--placed", type=float, default=SHARES["placed"], help="how often places and sizes are shown")
    parser.add_argument("--start", type=Path, help="a model folder whose weights to begin with")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    source = args.start or args.words
    vae = AutoencoderKL.from_pretrained(args.autoencoder / "vae").eval()
    tokenizer = CLIPTokenizer.from_pretrained(args.words / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(source / "text_encoder")
    unet = UNet2DConditionModel.from_pretrained(args.start / "unet").float() if args.start else new_unet()
    print(f"{sum(p.numel() for p in unet.parameters()):,} parameters in the U-Net")
    args.out.mkdir(parents=True, exist_ok=True)
    asks, latents = cache(vae, args.pictures, args.seed, args.out / "latents.pt")
    noise = DDPMScheduler(**NOISE)
    signal = noise.alphas_cumprod
    others = (1 - args.placed) / (1 - SHARES["placed"])
    shares = {kind: args.placed if kind == "placed" else share * others for kind, share in SHARES.items()}
    of_kind = {kind: [i for i, asked in enumerate(asks) if asked.kind == kind] for kind in SHARES}
    where = words.Layout()
    parameters = [*unet.parameters(), *encoder.parameters(), *where.parameters()]
    average = loop.Average(parameters, args.average)
    optimizer = torch.optim.AdamW(
        [
            {"params": list(unet.parameters())},
            {"params": list(encoder.parameters()), "scale": 0.3},
            {"params": list(where.parameters())},
        ],
        lr=args.rate, betas=(0.9, 0.98), weight_decay=0.02,
    )  # fmt: skip

    def loss_of(step: int) -> torch.Tensor:
        rng = random.Random(args.seed * 1_000_003 + step)
        torch.manual_seed(args.seed * 1_000_003 + step)
        # Two and three chunks are rare, and a whole batch has the same number: their encodings are joined end to end.
        chunks = rng.choices((1, 2, 3), (0.96, 0.03, 0.01))[0]
        kinds = rng.choices(list(shares), list(shares.values()), k=args.batch)
        picked = [rng.choice(of_kind[kind]) for kind in kinds]
        captions = [draw.say(asks[i], rng) if rng.random() > 0.1 else "" for i in picked]
        if chunks > 1:
            captions = [words.long(c, rng, chunks, tokenizer) if c else c for c in captions]
        mean, deviation = latents[picked].float().chunk(2, 1)
        latent = mean + deviation * torch.randn_like(mean)
        added = torch.randn_like(latent)
        # One step out of each of `batch` equal parts: as random as before, and less so from batch to batch.
        steps = ((torch.randperm(args.batch) + torch.rand(args.batch)) / args.batch * len(signal)).long()
        with torch.autocast("cpu", torch.bfloat16):
            ids = words.encode(captions, tokenizer, chunks)
            hidden = encoder(ids.flatten(0, 1)).last_hidden_state.unflatten(0, ids.shape[:2]).flatten(1, 2)
            predicted = unet(noise.add_noise(latent, added, steps), steps, hidden).sample
        ratio = (signal / (1 - signal))[steps]
        weight = ratio.clamp(max=5) / ratio
        said = [i for i, c in enumerate(captions) if c]
        layout = where.loss(hidden.float()[said, -1], [asks[picked[i]] for i in said])
        return ((predicted.float() - added).square().mean((1, 2, 3)) * weight).mean() + 0.02 * layout

    def snapshot() -> None:
        live = [p.detach().clone() for p in parameters]
        average.copy_to_parameters()
        export(args.out / "model", tokenizer, encoder, unet, vae, args.words)
        for p, v in zip(parameters, live, strict=True):
            p.data.copy_(v)

    loop.run(
        folder=args.out,
        steps=args.steps,
        optimizer=optimizer,
        average=average,
        modules={"unet": unet, "encoder": encoder, "where": where},
        loss_of=loss_of,
        peak=args.rate,
        decay_share=args.decay_share,
        save_every=240,
        after_save=snapshot,
    )
    print(json.dumps({"model": str(args.out / "model")}))


if __name__ == "__main__":
    main()
