"""`sdcli generate` through the front door, on the bundled model, judged by what is seen."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import Sdcli, pixels, record_of
from training import draw, judge

RED_ON_BLUE = "a red circle on a blue background"
ASKED = draw.Ask(kind="one", things=(("red", "circle"),), background="blue")
IMAGE_KEYS = "schema event id path line prompt seed width height format pixels seconds warnings".split()
RECORD_KEYS = [
    *"schema id request template tags model plan versions tokens scheduler".split(),
    *"flagged fallbacks seconds pixels encoding".split(),
]


def test_draws_what_was_asked(sdcli: Sdcli, tmp_path: Path) -> None:
    done = sdcli("generate", RED_ON_BLUE, "--model", "demo", "--seed", "7", "--steps", "25")
    assert done.code == 0, done.stderr
    assert done.lines == ["a-red-circle-on-a-blue-background-7.png"]
    image = Image.open(tmp_path / done.lines[0])
    assert (image.size, image.mode) == ((128, 128), "RGB")
    verdict = judge.judge(ASKED, image)
    assert verdict.right, verdict.reason
    assert [p.name for p in tmp_path.iterdir()] == done.lines, "nothing else is left"


def test_the_record_tells_what_happened(sdcli: Sdcli) -> None:
    done = sdcli("generate", "a blue star", "-m", "demo", "-s", "5", "--steps", "3", "--cfg", "4", "--dtype", "fp32")
    record = record_of(done.lines[0])
    assert list(record) == RECORD_KEYS
    request = record["request"]
    assert (request["prompt"], request["seed"], request["num_inference_steps"]) == ("a blue star", 5, 3)
    assert (request["guidance_scale"], request["width"], request["height"]) == (4.0, 128, 128)
    assert record["model"]["name"] == "demo"
    assert set(record["model"]["files"]) == {
        "--config",
        "text_encoder/model.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    }
    demo = Path(judge.__file__).parent.parent / "sdcli" / "demo"
    # As `sha256sum` lists the configurations.
    texts = sorted(f for f in demo.rglob("*") if f.suffix in (".json", ".txt"))
    lines = [f"{hashlib.sha256(f.read_bytes()).hexdigest()}  {f.relative_to(demo)}\n" for f in texts]
    assert record["model"]["files"].pop("--config") == hashlib.sha256("".join(lines).encode()).hexdigest()
    for name, sha256 in record["model"]["files"].items():
        assert hashlib.sha256((demo / name).read_bytes()).hexdigest() == sha256
    assert record["plan"]["device"] == "cpu" and record["plan"]["dtype"] == "fp32" and record["plan"]["pack_size"] == 1
    assert record["plan"]["reasons"]["dtype"] == "asked for"
    assert record["tokens"] == {"used": 3, "chunks": 1, "cut": "", "syntax": "a1111"}
    assert record["fallbacks"] == [] and record["flagged"] is None
    assert record["pixels"]["sha256"] == hashlib.sha256(pixels(done.lines[0]).astype("uint8").tobytes()).hexdigest()
    assert record["seconds"]["draw"] > 0 and record["seconds"]["load"] > 0
    import diffusers

    assert record["versions"]["diffusers"] == diffusers.__version__


def test_infotext_is_a1111s(sdcli: Sdcli) -> None:
    done = sdcli(
        "generate", "a red heart", "-m", "demo", "-s", "5", "--steps", "3", "--negative", "blue, green",
        "--sampler", "DPM++ 2M Karras", "--clip-skip", "1",
    )  # fmt: skip
    with Image.open(done.lines[0]) as image:
        text = image.info["parameters"]
    prompt, negative, details = text.split("\n")
    assert (prompt, negative) == ("a red heart", "Negative prompt: blue, green")
    assert details.startswith(
        "Steps: 3, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 2, Seed: 5, Size: 128x128, Model: demo, Clip skip: 2"
    )


@pytest.mark.parametrize(
    "options",
    [
        ["--steps", "4"],
        ["--cfg", "6"],
        ["--negative", "a blue square"],
        ["--scheduler", "euler-a"],
        ["--clip-skip", "1"],
        ["--scheduler", "ddim", "--set", "eta=1"],
        ["--set", "guidance-rescale=0.7"],
        ["--seed", "8"],
        ["--dtype", "bf16"],
    ],
    ids=" ".join,
)
def test_each_option_changes_the_picture_and_is_recorded(sdcli: Sdcli, options: list[str]) -> None:
    base = ["generate", RED_ON_BLUE, "-m", "demo", "--steps", "5", "-s", "7", "--dtype", "fp32", "--overwrite"]
    # What is said again comes last: the later of two equal flags wins.
    plain, other = sdcli(*base, "-o", "a.png"), sdcli(*base, *options, "-o", "b.png")
    assert (plain.code, other.code) == (0, 0), other.stderr
    before, after = record_of("a.png"), record_of("b.png")
    assert {**before["request"], **before["plan"]} != {**after["request"], **after["plan"]}
    assert before["pixels"]["sha256"] != after["pixels"]["sha256"]


def test_sizes(sdcli: Sdcli) -> None:
    done = sdcli("generate", "a star", "-m", "demo", "--steps", "2", "--size", "192x64", "--json")
    assert (done.events[0]["width"], done.events[0]["height"]) == (192, 64)
    with Image.open(done.events[0]["path"]) as image:
        assert image.size == (192, 64)
    done = sdcli("generate", "a star", "-m", "demo", "--steps", "2", "-W", "64", "--json")
    assert (done.events[0]["width"], done.events[0]["height"]) == (64, 128)


def test_count_and_seeds(sdcli: Sdcli) -> None:
    done = sdcli("generate", "a star", "a heart", "-m", "demo", "--steps", "2", "-c", "2", "-s", "40", "--json")
    assert done.code == 0
    assert [(e["prompt"], e["seed"]) for e in done.events] == [
        ("a star", 40),
        ("a star", 41),
        ("a heart", 40),
        ("a heart", 41),
    ]
    assert all(list(e) == IMAGE_KEYS and e["event"] == "image" and e["schema"] == 1 for e in done.events)
    assert [record_of(e["path"])["request"]["seed"] for e in done.events] == [40, 41, 40, 41]
    assert len({e["id"] for e in done.events}) == 4


def test_without_a_seed_one_is_drawn_said_and_stored(sdcli: Sdcli) -> None:
    seeds = set()
    for extra in ([], ["--seed", "-1"]):
        done = sdcli("generate", "a star", "-m", "demo", "--steps", "1", "--json", *extra)
        seed = done.events[0]["seed"]
        assert 0 <= seed < 2**32 and f"seed {seed}" in done.stderr
        assert record_of(done.events[0]["path"])["request"]["seed"] == seed
        seeds.add(seed)
    assert len(seeds) == 2


def test_packs_and_single_runs_draw_the_same(sdcli: Sdcli) -> None:
    options = ["-m", "demo", "--steps", "10", "--dtype", "fp32", "--scheduler", "euler-a"]
    four = sdcli("generate", RED_ON_BLUE, *options, "-s", "3", "-c", "4", "--batch-size", "4", "-o", "four/")
    one = sdcli("generate", RED_ON_BLUE, *options, "-s", "3", "-c", "4", "--batch-size", "1", "-o", "one/")
    alone = [sdcli("generate", RED_ON_BLUE, *options, "-s", str(3 + k), "-o", "alone/") for k in range(4)]
    paths = list(zip(four.lines, one.lines, [a.lines[0] for a in alone], strict=True))
    assert len(paths) == 4
    for packed, single, own in paths:
        assert record_of(packed)["plan"]["pack_size"] == 4 and record_of(single)["plan"]["pack_size"] == 1
        assert abs(pixels(packed) - pixels(single)).max() <= 1
        assert (pixels(single) == pixels(own)).all()
    assert len({pixels(p).tobytes() for p in four.lines}) == 4


PLAIN = """
import torch
from diffusers import StableDiffusionPipeline
pipe = StableDiffusionPipeline.from_pretrained({folder!r})
seed = torch.Generator("cpu").manual_seed(7)
image = pipe({prompt!r}, generator=seed, num_inference_steps=25, guidance_scale=5.0).images[0]
image.save("plain.png")
"""


def test_same_pixels_as_plain_diffusers(process: Sdcli, probe: object, tmp_path: Path) -> None:
    """Bit for bit, in fp32 on the CPU, with no argument of ours to `from_pretrained`."""
    folder = str(Path(judge.__file__).parent.parent / "sdcli" / "demo")
    plain = probe(PLAIN.format(folder=folder, prompt=RED_ON_BLUE))  # type: ignore[operator]
    assert plain.returncode == 0, plain.stderr
    options = ["-s", "7", "--steps", "25", "--cfg", "5", "--dtype", "fp32", "-o", "ours.png"]
    done = process("generate", RED_ON_BLUE, "-m", "demo", *options)
    assert done.code == 0, done.stderr
    assert (pixels(tmp_path / "plain.png") == pixels(tmp_path / "ours.png")).all()


def test_presets_and_their_order(sdcli: Sdcli) -> None:
    base = ["generate", "a star", "-m", "demo", "--dry-run", "--json"]
    for options, steps, origin in (
        ([], 25, "model demo"),
        (["-p", "fast"], 12, "preset fast"),
        (["-p", "fast", "-p", "quality"], 40, "preset quality"),
        (["-p", "fast", "--steps", "3"], 3, "flag"),
        (["-p", "fast", "--set", "steps=4"], 4, "--set"),
    ):
        (event,) = sdcli(*base, *options).events
        assert event["request"]["num_inference_steps"] == steps
        assert event["origins"]["num_inference_steps"] == origin
    (event,) = sdcli(*base, "-p", "lowvram").events
    assert (event["plan"]["attention_slicing"], event["plan"]["vae_tiling"]) == ("on", True)


def test_dry_run_says_all_and_draws_nothing(probe: object, tmp_path: Path) -> None:
    code = (
        "import sys; from sdcli.cli.main import main\n"
        "code = main(['generate', 'a star', '-m', 'demo', '-s', '5', '-c', '2', '--dry-run', '--json', '-o', 'new/'])\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
        "sys.exit(code)"
    )
    done = probe(code)  # type: ignore[operator]
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [list(e) for e in events] == [
        ["schema", "event", "id", "path", "line", "request", "model", "plan", "origins"]
    ] * 2
    assert [e["path"] for e in events] == ["new/a-star-5.png", "new/a-star-6.png"]
    assert [e["request"]["seed"] for e in events] == [5, 6]
    assert events[0]["plan"]["device"] is None and events[0]["origins"]["device"] == "decided at run time"
    assert events[0]["origins"]["seed"] == "flag" and events[0]["origins"]["width"] == "model demo"
    assert not list(tmp_path.iterdir())


def test_a_plan_has_the_id_of_its_picture(sdcli: Sdcli) -> None:
    command = ["generate", "a star", "-m", "demo", "-s", "5", "--steps", "2", "--sampler", "Euler a", "--json"]
    (planned,), (drawn,) = sdcli(*command, "--dry-run").events, sdcli(*command).events
    assert planned["id"] == drawn["id"] == record_of(drawn["path"])["id"]
    assert planned["path"] == drawn["path"]


def test_prompt_from_stdin(process: Sdcli, tmp_path: Path) -> None:
    prompt = "a red circle\non a blue background"
    done = process(
        "generate", "-", "-m", "demo", "--steps", "1", "-s", "1", "-o", "x.png", stdin=f"{prompt}\n".encode()
    )
    assert done.code == 0, done.stderr
    assert record_of(tmp_path / "x.png")["request"]["prompt"] == prompt


def test_picture_to_stdout(process: Sdcli) -> None:
    done = process("generate", "a star", "-m", "demo", "--steps", "1", "-o", "-")
    assert done.code == 0, done.stderr
    with Image.open(io.BytesIO(done.stdout)) as image:
        assert image.format == "PNG"
        image.load()


def test_print0(sdcli: Sdcli) -> None:
    done = sdcli("generate", "a star", "a heart", "-m", "demo", "--steps", "1", "-s", "1", "-0")
    assert done.stdout == b"a-star-1.png\0a-heart-1.png\0"


def test_metadata_none(sdcli: Sdcli) -> None:
    done = sdcli("generate", "a secret star", "-m", "demo", "--steps", "1", "--metadata", "none", "-o", "x.png")
    assert done.code == 0
    assert b"secret" not in Path("x.png").read_bytes()
    with Image.open("x.png") as image:
        assert not image.info


def test_a_long_prompt_is_cut_aloud(sdcli: Sdcli) -> None:
    prompt = "a red circle " + "and a day in the garden " * 20 + "with a purple unicorn"
    done = sdcli("generate", prompt, "-m", "demo", "--steps", "1", "--json", "--long-prompt", "cut")
    record = record_of(done.events[0]["path"])
    assert record["tokens"]["used"] == 75 and record["tokens"]["cut"].endswith("with a purple unicorn")
    (warning,) = done.events[0]["warnings"]
    assert "75 tokens" in warning and record["tokens"]["cut"] in warning
    assert "warning: " in done.stderr and "purple unicorn" in done.stderr
    assert prompt.endswith(record["tokens"]["cut"])


def test_quiet_and_verbose(sdcli: Sdcli) -> None:
    command = ["generate", "a star", "-m", "demo", "--steps", "1"]
    assert sdcli(*command, "-q").stderr == ""
    said = sdcli(*command, "-v").stderr
    assert "device: cpu (" in said and "dtype: " in said and "attention_slicing: off (" in said


def test_slicing_and_tiling_draw_the_same(sdcli: Sdcli) -> None:
    command = ["generate", RED_ON_BLUE, "-m", "demo", "--steps", "4", "-s", "7", "--dtype", "fp32"]
    sdcli(*command, "-o", "plain.png")
    for options, name in ((["on"], "on"), (["max"], "max"), (["2"], "2"), (["on", "--vae-tiling"], "tiled")):
        done = sdcli(*command, "--attention-slicing", *options, "-o", f"{name}.png")
        assert done.code == 0, done.stderr
        assert abs(pixels(f"{name}.png") - pixels("plain.png")).max() <= 1
        assert record_of(f"{name}.png")["plan"]["attention_slicing"] == options[0]
    assert record_of("tiled.png")["plan"]["vae_tiling"] is True


def test_threads(process: Sdcli, tmp_path: Path) -> None:
    done = process("generate", "a star", "-m", "demo", "--steps", "1", "--threads", "1", "-o", "x.png")
    assert done.code == 0, done.stderr
    assert record_of(tmp_path / "x.png")["plan"]["threads"] == 1


def test_something_is_said_before_torch(probe: object) -> None:
    code = (
        "import sys\n"
        "class Spy:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch': print('TORCH', file=sys.stderr)\n"
        "sys.meta_path.insert(0, Spy())\n"
        "from sdcli.cli.main import main\n"
        "sys.exit(main(['generate', 'a star', '-m', 'demo', '--steps', '1']))"
    )
    done = probe(code)  # type: ignore[operator]
    assert done.returncode == 0, done.stderr
    before, marker, _ = done.stderr.partition("TORCH")
    assert marker and "loading demo" in before


def test_bar_on_a_terminal_only(process: Sdcli, tmp_path: Path) -> None:
    import pty
    import subprocess

    command = [sys.executable, "-m", "sdcli", "generate", "a star", "-m", "demo", "--steps", "20", "-o", "x.png"]
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    env.pop("NO_COLOR", None)
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, cwd=tmp_path, env=env)
    os.close(theirs)
    seen = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # Linux's word for the other end's having gone
            break
        if not part:
            break
        seen += part
    os.close(ours)
    out, _ = running.communicate()
    assert running.returncode == 0 and out == b"x.png\n"
    assert re.search(rb"\d+/20", seen) and b"s/step" in seen and b"ETA" in seen

    piped = process("generate", "a star", "-m", "demo", "--steps", "20", "-o", "y.png")
    assert "\x1b" not in piped.stderr and "s/step" not in piped.stderr


def test_a_name_that_is_taken(sdcli: Sdcli) -> None:
    command = ["generate", "a star", "-m", "demo", "--steps", "1", "-s", "1"]
    assert sdcli(*command).lines == ["a-star-1.png"]
    assert sdcli(*command).lines == ["a-star-1-2.png"]
    assert sdcli(*command, "--overwrite").lines == ["a-star-1.png"]
    assert np.array_equal(pixels("a-star-1.png"), pixels("a-star-1-2.png"))
