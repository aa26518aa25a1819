"""The bundled model, judged by meaning. The whole table is `python -m training.judge`; `full` runs it as a test."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest

from sdcli import models, schedulers
from tests.conftest import Sdcli
from training import draw, judge

DEMO = models.demo_folder()
ASKED = draw.Ask(kind="one", things=(("yellow", "star"),), background="black")


def test_the_folder_is_standard_and_small() -> None:
    assert sum(f.stat().st_size for f in DEMO.rglob("*") if f.is_file()) <= 16_000_000
    index = json.loads((DEMO / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert {k: v[1] for k, v in index.items() if isinstance(v, list) and v[1]} == {
        "scheduler": "DPMSolverMultistepScheduler",
        "text_encoder": "CLIPTextModel",
        "tokenizer": "CLIPTokenizer",
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
    }
    scheduler = json.loads((DEMO / "scheduler" / "scheduler_config.json").read_text())
    assert (scheduler["num_train_timesteps"], scheduler["beta_schedule"]) == (1000, "scaled_linear")
    assert scheduler["prediction_type"] == "epsilon"
    vae = json.loads((DEMO / "vae" / "config.json").read_text())
    assert vae["latent_channels"] == 4 and 2 ** (len(vae["block_out_channels"]) - 1) == 8
    dtypes = {
        part: {entry["dtype"] for file in (DEMO / part).glob("*.safetensors") for entry in models.read_header(file).values()
               if "dtype" in entry}
        for part in ("text_encoder", "unet", "vae")
    }  # fmt: skip
    assert dtypes == {"text_encoder": {"F32"}, "unet": {"F16"}, "vae": {"F16"}}


def test_any_text_can_be_encoded() -> None:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(DEMO / "tokenizer")
    assert tokenizer.model_max_length == 77
    for word in (*draw.COLOURS, *draw.SHAPES, *draw.SIZES, "background"):
        assert len(tokenizer(word)["input_ids"]) == 3, f"{word} is one token"
    for text in ("", "Ein Stern – 星 ✨", "\x00\x7f", "a" * 1000):
        ids = tokenizer(text, truncation=False, verbose=False)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
        assert max(ids) < len(tokenizer)


def test_nothing_held_back_is_ever_shown() -> None:
    """By the drawer's own mouth: in no kind of sentence is there a triple of the held-back fifth."""
    import random

    rng = random.Random(5)
    share = 0
    for kind in ("one", "placed", "two", "relation", "count"):
        for _ in range(400):
            _, scene = draw.sample(rng, kind)
            for thing in scene.things:
                text = f"{thing.colour} {thing.shape} {scene.background}"
                assert zlib.crc32(text.encode()) % 5 != 0
                share += 1
    assert share > 2000


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ("blue background, red circle", draw.Ask(kind="one", things=(("red", "circle"),), background="blue")),
        ("a small green heart on a white background",
         draw.Ask(kind="placed", things=(("green", "heart"),), background="white", size="small")),
        ("a purple square in the top left corner on a yellow background",
         draw.Ask(kind="placed", things=(("purple", "square"),), background="yellow", place="in the top left corner")),
        ("a red circle and a blue square on a white background",
         draw.Ask(kind="two", things=(("red", "circle"), ("blue", "square")), background="white")),
        ("an orange diamond above a white cross on a purple background",
         draw.Ask(kind="relation", things=(("orange", "diamond"), ("white", "cross")), background="purple", relation="above")),
        ("three green stars on a black background",
         draw.Ask(kind="count", things=(("green", "star"),), background="black", count=3)),
    ],
)  # fmt: skip
def test_words_are_understood(sdcli: Sdcli, prompt: str, asked: draw.Ask) -> None:
    from PIL import Image

    done = sdcli("generate", prompt, "-m", "demo", "-s", "1", "-o", "x.png")
    assert done.code == 0, done.stderr
    with Image.open("x.png") as image:
        verdict = judge.judge(asked, image)
    assert verdict.right, verdict.reason


def test_anything_else_still_draws_something(sdcli: Sdcli) -> None:
    done = sdcli(
        "generate", "", "an astronaut riding a horse, 4k", "宇宙飛行士", "-m", "demo", "-s", "1", "--steps", "8"
    )
    assert done.code == 0 and len(done.lines) == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", [s.name for s in schedulers.SCHEDULERS])
def test_every_scheduler_draws_the_right_thing(sdcli: Sdcli, name: str) -> None:
    from PIL import Image

    done = sdcli(
        "generate", "a yellow star on a black background", "-m", "demo", "-s", "1", "--scheduler", name, "-o", "x.png"
    )
    assert done.code == 0, done.stderr
    with Image.open("x.png") as image:
        verdict = judge.judge(ASKED, image)
    assert verdict.right, verdict.reason


def _table(count: int) -> None:
    results = judge.evaluate(judge.model_drawing(DEMO, steps=25, guidance_scale=2.0), count)
    print(judge.table(results))
    short = [r for r in results if not r.ok]
    assert not short, judge.table(results)


@pytest.mark.slow
def test_the_judges_table_in_short() -> None:
    _table(60)


@pytest.mark.full
def test_the_judges_table() -> None:
    _table(200)


def test_the_card_has_what_a_card_has() -> None:
    card = (DEMO / "README.md").read_text("utf-8")
    for word in ("CC0", "Held back", "can't do", "python -m training.judge", "| one thing, held-back triples |"):
        assert word in card
    assert (DEMO / "LICENSE").read_text("utf-8").startswith("Creative Commons Legal Code")
    assert Path("sdcli/demo") == DEMO.relative_to(DEMO.parent.parent)
