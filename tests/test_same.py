"""The same pixels, to the last bit, as plain calls of diffusers, through the front door: adapters, pictures as a start, hires."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from tests import adapter_files as made
from tests import families
from tests.conftest import Sdcli, pixels
from tests.test_start import PLAIN, plain
from training import draw

HERE = Path(__file__).parent / "adapters"
PROMPT, NEGATIVE = "a green square on a white background", "a red circle"
SEED, STEPS, GUIDANCE, STRENGTH = 5, 8, 3.0, 0.6
SAID = ("-s", str(SEED), "--steps", str(STEPS), "--cfg", str(GUIDANCE), "--negative", NEGATIVE)
GIVEN = {"negative_prompt": NEGATIVE, "num_inference_steps": STEPS, "guidance_scale": GUIDANCE}
SD = "StableDiffusion"


@pytest.fixture
def start(tmp_path: Path) -> Image.Image:
    """A red circle on blue, saved as start.png."""
    thing = draw.Thing(colour="red", shape="circle", x=60, y=70, r=30)
    image = draw.paint(draw.Scene(background="blue", things=(thing,)))
    image.save(tmp_path / "start.png")
    return image


@pytest.fixture
def outline(tmp_path: Path) -> Image.Image:
    """What a ControlNet reads: a white star on black, saved as outline.png."""
    image = draw.paint(
        draw.Scene(background="black", things=(draw.Thing(colour="white", shape="star", x=60, y=64, r=36),))
    )
    image.save(tmp_path / "outline.png")
    return image


@pytest.fixture
def mask(tmp_path: Path) -> Image.Image:
    """White where it is repainted, whole latents' cells, saved as mask.png."""
    image = Image.new("L", (128, 128), 0)
    ImageDraw.Draw(image).rectangle((24, 32, 103, 111), fill=255)
    image.save(tmp_path / "mask.png")
    return image


@contextmanager
def plainly() -> Iterator[None]:
    """Let the libraries tell of what they will, where they are called without sdcli."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def aligned(network: Any) -> Any:
    """Return a network whose weights lie where PyTorch's own allocation puts them (see `plain`)."""
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data = tensor.data.clone()
    return network


def expected(pipe: Any, *, seed: int = SEED, prompt: str = PROMPT, **given: Any) -> Any:
    """Return the pixels (height, width, 3) of one plain call."""
    with plainly():
        drawn = pipe(prompt, generator=torch.Generator().manual_seed(seed), **GIVEN | given).images[0]
    return np.asarray(drawn).astype(int)


def asked(sdcli: Sdcli, *more: str, model: Sequence[str] = PLAIN) -> Any:
    done = sdcli("generate", PROMPT, *model, *SAID, *more, "-o", "x.png", "--overwrite")
    assert done.code == 0, done.stderr
    return pixels("x.png")


def with_nets(kind: str, nets: Any) -> Any:
    """Return diffusers' pipeline of that kind over the bundled model, with ControlNets."""
    import diffusers

    parts = plain(f"{SD}Pipeline").components
    pipe = getattr(diffusers, kind)(**parts, controlnet=nets, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def trained_net() -> Any:
    from diffusers import ControlNetModel

    return aligned(ControlNetModel.from_pretrained(HERE / "controlnet", dtype=torch.float32))


# LoRA


@pytest.mark.parametrize("start_from", ["", "image", "mask"])
def test_a_lora(sdcli: Sdcli, start: Image.Image, mask: Image.Image, start_from: str) -> None:
    """A trained one; drawn from noise, from a picture, and over a part of one."""
    ways: dict[str, tuple[str, list[str], dict[str, Any]]] = {
        "": ("", [], {}),
        "image": ("Img2Img", ["-i", "start.png"], {"image": start, "strength": STRENGTH}),
        "mask": (
            "Inpaint",
            ["-i", "start.png", "--mask", "mask.png"],
            {"image": start, "mask_image": mask, "strength": STRENGTH},
        ),
    }
    kind, said, given = ways[start_from]
    pipe = plain(f"{SD}{kind}Pipeline")
    without = expected(pipe, **given)
    with plainly():
        pipe.load_lora_weights(str(HERE / "green.safetensors"), adapter_name="green")
    pipe.set_adapters(["green"], adapter_weights=[0.8])
    aligned(pipe.unet)
    wanted = expected(pipe, **given)
    strength = ["--strength", str(STRENGTH)] if said else []
    found = asked(sdcli, *said, *strength, "--lora", f"{HERE / 'green.safetensors'}:0.8")
    where = np.asarray(mask) > 0 if start_from == "mask" else np.full((128, 128), True)
    assert (found[where] == wanted[where]).all() and (without[where] != wanted[where]).any()
    assert (found[~where] == np.asarray(start)[~where]).all()


def test_loras_of_the_words_too(sdcli: Sdcli, tmp_path: Path) -> None:
    """Two, that change the text encoder as well, in kohya's layout and in peft's."""
    pipe = plain(f"{SD}Pipeline")
    layers = made.layers(pipe, ("unet", "text_encoder"))
    files = {
        layout: made.saved(made.lora(layers, layout=layout, seed=seed, size=0.1), tmp_path / f"{layout}.safetensors")
        for seed, layout in enumerate(("kohya", "peft"))
    }
    without = expected(pipe)
    with plainly():
        for name, file in files.items():
            pipe.load_lora_weights(str(file), adapter_name=name)
    pipe.set_adapters(list(files), adapter_weights=[0.7, -0.4])
    aligned(pipe.unet), aligned(pipe.text_encoder)
    wanted = expected(pipe)
    assert (asked(sdcli, "--lora", "./kohya.safetensors:0.7", "--lora", "./peft.safetensors:-0.4") == wanted).all()
    assert (wanted != without).any()


# ControlNet


def test_a_controlnet(sdcli: Sdcli, outline: Image.Image) -> None:
    pipe = with_nets(f"{SD}ControlNetPipeline", trained_net())
    wanted = expected(pipe, image=outline, controlnet_conditioning_scale=0.7)
    assert (asked(sdcli, "--controlnet", f"{HERE / 'controlnet'}=outline.png:0.7") == wanted).all()
    assert (expected(pipe, image=outline, controlnet_conditioning_scale=0.0) != wanted).any()


def test_a_controlnet_from_a_picture(sdcli: Sdcli, outline: Image.Image, start: Image.Image) -> None:
    pipe = with_nets(f"{SD}ControlNetImg2ImgPipeline", trained_net())
    wanted = expected(pipe, image=start, control_image=outline, strength=STRENGTH, controlnet_conditioning_scale=0.7)
    found = asked(
        sdcli, "-i", "start.png", "--strength", str(STRENGTH), "--controlnet", f"{HERE / 'controlnet'}=outline.png:0.7"
    )
    assert (found == wanted).all()


def test_a_controlnet_over_a_part(sdcli: Sdcli, outline: Image.Image, start: Image.Image, mask: Image.Image) -> None:
    pipe = with_nets(f"{SD}ControlNetInpaintPipeline", trained_net())
    wanted = expected(
        pipe, image=start, mask_image=mask, control_image=outline, strength=1.0, controlnet_conditioning_scale=0.7,
        height=128, width=128,
    )  # fmt: skip
    found = asked(
        sdcli, "-i", "start.png", "--mask", "mask.png", "--controlnet", f"{HERE / 'controlnet'}=outline.png:0.7"
    )
    inside = np.asarray(mask) > 0
    assert (found[inside] == wanted[inside]).all() and (found[~inside] == np.asarray(start)[~inside]).all()


def test_two_controlnets(sdcli: Sdcli, tmp_path: Path, outline: Image.Image, start: Image.Image) -> None:
    """Each with its picture and its scale."""
    other = made.controlnet(plain(f"{SD}Pipeline"), seed=1)
    other.save_pretrained(tmp_path / "other")
    pipe = with_nets(f"{SD}ControlNetPipeline", [trained_net(), other])
    wanted = expected(pipe, image=[outline, start], controlnet_conditioning_scale=[0.7, 0.4])
    both = ("--controlnet", f"{HERE / 'controlnet'}=outline.png:0.7", "--controlnet", "./other=start.png:0.4")
    assert (asked(sdcli, *both) == wanted).all()
    assert (asked(sdcli, *both[:2]) != wanted).any()


# IP-Adapter


@pytest.mark.parametrize("start_from", ["", "image"])
def test_an_ip_adapter(sdcli: Sdcli, tmp_path: Path, start: Image.Image, outline: Image.Image, start_from: str) -> None:
    pipe = plain(f"{SD}{'Img2Img' if start_from else ''}Pipeline")
    made.image_encoder(tmp_path / "image_encoder")
    made.ip_adapter(pipe, tmp_path / "ip.safetensors")
    with plainly():
        pipe.load_ip_adapter(str(tmp_path), subfolder="", weight_name="ip.safetensors")
    pipe.set_ip_adapter_scale(0.6)
    aligned(pipe.unet), aligned(pipe.image_encoder)
    given: dict[str, Any] = {"image": start, "strength": STRENGTH} if start_from else {}
    wanted = expected(pipe, ip_adapter_image=outline, **given)
    said = ("-i", "start.png", "--strength", str(STRENGTH)) if start_from else ()
    assert (asked(sdcli, *said, "--ip-adapter", "./ip.safetensors=outline.png:0.6") == wanted).all()
    assert (asked(sdcli, *said) != wanted).any()


def test_all_at_once(sdcli: Sdcli, tmp_path: Path, start: Image.Image, outline: Image.Image) -> None:
    """A LoRA, a ControlNet and an IP-Adapter, from a picture."""
    pipe = with_nets(f"{SD}ControlNetImg2ImgPipeline", trained_net())
    made.image_encoder(tmp_path / "image_encoder")
    made.ip_adapter(pipe, tmp_path / "ip.safetensors")
    with plainly():
        pipe.load_ip_adapter(str(tmp_path), subfolder="", weight_name="ip.safetensors")
        pipe.load_lora_weights(str(HERE / "green.safetensors"), adapter_name="green")
    pipe.set_ip_adapter_scale(0.6)
    pipe.set_adapters(["green"], adapter_weights=[0.8])
    aligned(pipe.unet), aligned(pipe.image_encoder)
    wanted = expected(
        pipe, image=start, control_image=outline, strength=STRENGTH, controlnet_conditioning_scale=0.7,
        ip_adapter_image=start,
    )  # fmt: skip
    found = asked(
        sdcli, "-i", "start.png", "--strength", str(STRENGTH), "--lora", f"{HERE / 'green.safetensors'}:0.8",
        "--controlnet", f"{HERE / 'controlnet'}=outline.png:0.7", "--ip-adapter", "./ip.safetensors=start.png:0.6",
    )  # fmt: skip
    assert (found == wanted).all()


# SDXL


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.saved("StableDiffusionXLPipeline", tmp_path_factory.mktemp("models") / "sdxl")


def sdxl_pipe(folder: Path, kind: str, **more: Any) -> Any:
    import diffusers

    pipe = getattr(diffusers, f"{SD}XL{kind}Pipeline").from_pretrained(folder, dtype=torch.float32, **more)
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            aligned(part)
    return pipe


@pytest.mark.parametrize("start_from", ["image", "mask", "control", "control-image"])
def test_sdxl(
    sdcli: Sdcli,
    sdxl: Path,
    tmp_path: Path,
    start: Image.Image,
    outline: Image.Image,
    mask: Image.Image,
    start_from: str,
) -> None:
    """From a picture, over a part of one, with a ControlNet, and with both."""
    size = (64, 64)
    for image, name in ((start, "start.png"), (outline, "outline.png")):
        image.resize(size).save(name)
    small = mask.crop((0, 0, *size))
    small.save("mask.png")
    with Image.open("start.png") as one, Image.open("outline.png") as two:
        source, control = one.copy(), two.copy()
    if start_from.startswith("control"):
        net = made.controlnet(sdxl_pipe(sdxl, ""))
        net.save_pretrained(tmp_path / "net")
        more = {"controlnet": net}
    else:
        more = {}
    ways: dict[str, tuple[str, dict[str, Any], list[str]]] = {
        "image": ("Img2Img", {"image": source}, ["-i", "start.png"]),
        "mask": ("Inpaint", {"image": source, "mask_image": small}, ["-i", "start.png", "--mask", "mask.png"]),
        "control": ("ControlNet", {"image": control}, ["--controlnet", "./net=outline.png:0.7"]),
        "control-image": (
            "ControlNetImg2Img",
            {"image": source, "control_image": control},
            ["-i", "start.png", "--controlnet", "./net=outline.png:0.7"],
        ),
    }
    kind, given, said = ways[start_from]
    if more:
        given["controlnet_conditioning_scale"] = 0.7
    if "-i" in said:
        given["strength"], said = STRENGTH, [*said, "--strength", str(STRENGTH)]
    if start_from != "image":
        given |= {"width": size[0], "height": size[1]}
    wanted = expected(sdxl_pipe(sdxl, kind, **more), **given)
    found = asked(sdcli, *said, "--size", "64x64", model=["-m", str(sdxl), "--dtype", "fp32"])
    where = np.asarray(small) > 0 if start_from == "mask" else np.full(size, True)
    assert (found[where] == wanted[where]).all() and (found[~where] == np.asarray(source)[~where]).all()
    assert wanted[where].std() > 0


# Larger


def test_hires_is_three_steps_by_hand(sdcli: Sdcli) -> None:
    """Drawn from words, enlarged by Lanczos, drawn over with the same words, each with noise of the seed."""
    small = expected(plain(f"{SD}Pipeline"))
    large = Image.fromarray(small.astype("uint8")).resize((192, 192), Image.Resampling.LANCZOS)
    wanted = expected(plain(f"{SD}Img2ImgPipeline"), image=large, strength=STRENGTH)
    assert (asked(sdcli, "--hires", f"1.5x:{STRENGTH}") == wanted).all()


# In packs

PACK = ["a red circle on a white background", "a blue star", "three green hearts on a black background"]
CONDITIONS: dict[str, dict[str, Any]] = {
    "a LoRA": {"lora": [{"name": str(HERE / "green.safetensors"), "scale": 0.8}]},
    "a ControlNet": {"controlnet": [{"name": str(HERE / "controlnet"), "image": "outline.png", "scale": 0.7}]},
    "a picture": {"init_image": "start.png", "strength": STRENGTH},
    "a part of a picture": {"init_image": "start.png", "mask": "mask.png"},
    "hires": {"hires": "1.5x:0.6"},
    "variations": {"variation": "9:0.3"},
}


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.usefixtures("start", "outline", "mask")
def test_neighbours_change_no_pixel(sdcli: Sdcli, threads: int, condition: str) -> None:
    """Rows with words and seeds of their own, in one pass and each in a pass of that size alone: the same bits by one thread.

    Several share a pack's work out, and a picture's place in it decides a last bit here and there: one level of 255 at most.
    """
    rows = [
        {"prompt": p, "seed": seed, "steps": 4, "negative_prompt": NEGATIVE, **CONDITIONS[condition]}
        for seed, p in enumerate(PACK)
    ]

    def drawn(rows: list[dict[str, Any]], folder: str) -> dict[int, Any]:
        Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        done = sdcli("batch", "rows.jsonl", *PLAIN, "--batch-size", "3", "-o", f"{folder}/", "--json")
        assert done.code == 0, done.stderr
        return {e["seed"]: pixels(e["path"]) for e in done.events if e["event"] == "image"}

    together = drawn(rows, "together")
    assert len(together) == len(rows) and len({p.tobytes() for p in together.values()}) == len(rows)
    for row in rows:
        (alone,) = drawn([row], f"alone-{row['seed']}").values()
        difference = np.abs(alone - together[int(str(row["seed"]))])
        assert difference.max() <= (0 if threads == 1 else 1) and (difference > 0).mean() < 0.001
