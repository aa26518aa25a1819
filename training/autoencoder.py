"""Train the autoencoder: 128 x 128 pictures to 16 x 16 x 4 latents and back.

    python -m training.autoencoder --out build/autoencoder

An `AutoencoderKL` of diffusers (Rombach et al. 2022, arXiv 2112.10752, section 3.1) without the adversarial part, which
flat shapes do not need. A linear map, thrown away afterwards, must read each 8 x 8 square's mean colour off its latent:
without it two channels were enough for flat colours, which then lay so close to each other that the noise predictor
would take one for another; and a linear map is what previews draw latents with.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional

from training import draw, loop


def new_autoencoder() -> AutoencoderKL:
    """Return an untrained autoencoder of factor 8 with 4 latent channels."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=draw.SIZE,
        force_upcast=False,
    )


def pictures(rng: random.Random, count: int, crop: int) -> torch.Tensor:
    """Return `count` random pictures as (count, 3, crop, crop) in [-1, 1], cut out at random places."""
    out = np.empty((count, crop, crop, 3), np.uint8)
    for i in range(count):
        kind = rng.choices(draw.KINDS[:5], (1, 2, 3, 3, 3))[0]
        image = np.asarray(draw.paint(draw.sample(rng, kind)[1]))
        # A shift of whole pixels: edges must be seen at every offset within a latent's 8 x 8.
        x, y = rng.randint(0, draw.SIZE - crop), rng.randint(0, draw.SIZE - crop)
        out[i] = image[y : y + crop, x : x + crop]
    return torch.from_numpy(out).permute(0, 3, 1, 2).float() / 127.5 - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/autoencoder"))
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=2e-3)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    model = new_autoencoder()
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    colour = torch.nn.Conv2d(4, 3, 1)
    parameters = [*model.parameters(), *colour.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=args.rate, betas=(0.9, 0.98), weight_decay=0.01)
    average = loop.Average(parameters, 0.995)

    def loss_of(step: int) -> torch.Tensor:
        rng = random.Random(args.seed * 1_000_003 + step)
        torch.manual_seed(args.seed * 1_000_003 + step)
        # The last part sees whole pictures, as the finished model does: its normalizations look at all of them.
        whole = step > 0.8 * args.steps
        images = pictures(rng, args.batch // 2 if whole else args.batch, draw.SIZE if whole else 64)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = model.encode(images).latent_dist
            latent = posterior.sample()
            decoded = model.decode(latent).sample
        error = (decoded.float() - images).abs()
        square = functional.mse_loss(decoded.float(), images)
        mean_colour = functional.mse_loss(colour(latent.float()), functional.avg_pool2d(images, 8))
        return error.mean() + square + 0.3 * mean_colour + 5e-4 * posterior.kl().mean() / posterior.mean[0].numel()

    loop.run(
        folder=args.out,
        steps=args.steps,
        optimizer=optimizer,
        average=average,
        modules={"autoencoder": model, "colour": colour},
        loss_of=loss_of,
        peak=args.rate,
        decay_share=0.4,
    )
    average.copy_to_parameters()
    model.eval()
    with torch.no_grad():
        images = pictures(random.Random(-1), 256, draw.SIZE)
        latents = torch.cat([model.encode(part).latent_dist.mean for part in images.split(32)])
        decoded = torch.cat([model.decode(part).sample for part in latents.split(32)])
    model.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    print(f"mean error {(decoded - images).abs().mean() * 127.5:.2f} of 255, latent std {latents.std():.3f}")
    print("per channel mean", latents.mean((0, 2, 3)).tolist(), "std", latents.std((0, 2, 3)).tolist())
    model.save_pretrained(args.out / "vae")


if __name__ == "__main__":
    main()
