"""Each family of models: it draws, refuses what it can't use, its record is right, and it is drawn again the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdcli.models import FAMILIES
from tests.conftest import Sdcli, pixels, record_of
from tests.families import BUILDERS, SIZES, saved

# In every run; the others are slow.
ALWAYS = ("StableDiffusionXLPipeline", "FluxPipeline", "PixArtSigmaPipeline")
NAMES = [pytest.param(n, id=n, marks=() if n in ALWAYS else pytest.mark.slow) for n in sorted(BUILDERS)]
# A value for each field that some family lacks, which has an effect where it has one at all.
VALUES: dict[str, tuple[str, ...]] = {
    "negative_prompt": ("--negative", "a blue square on green, and nothing else"),
    "clip_skip": ("--clip-skip", "1"),
    "eta": ("--set", "eta=0.7"),
    "guidance_rescale": ("--set", "guidance_rescale=0.9"),
    "true_cfg_scale": ("--set", "true_cfg_scale=3"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Models on disk, each made when it is asked for first."""
    root, made = tmp_path_factory.mktemp("families"), dict[str, Path]()

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = saved(name, root / name.replace(" ", "-"))
        return made[name]

    yield folder


def asked(name: str, folder: Path) -> list[str]:
    width, height = SIZES[name]
    return [
        "a red circle", "-m", str(folder), "--size", f"{width}x{height}", "--steps", "3", "--dtype", "fp32",
        "-s", "7",
    ]  # fmt: skip


def family_of(name: str) -> Any:
    return FAMILIES[name.split()[0]]


@pytest.mark.parametrize("name", NAMES)
def test_a_family(name: str, folders: Any, sdcli: Sdcli, table: Any, tmp_path: Path) -> None:
    folder, family = folders(name), family_of(name)
    width, height = SIZES[name]
    command = asked(name, folder)

    done = sdcli("generate", *command, "-o", "one.png")
    assert done.code == 0, done.stderr
    drawn = pixels("one.png")
    assert drawn.shape == (height, width, 3) and drawn.std() > 1
    for other in (["a blue square", *command[1:]], [*command, "-s", "8"]):
        assert sdcli("generate", *other, "-o", "other.png").code == 0
        assert (pixels("other.png") != drawn).any(), other

    refused, heeded = [], []
    for field, words in VALUES.items():
        if field in family.lacks:
            gone = sdcli("generate", *command, *words, "--dry-run")
            assert gone.code == 2 and field in gone.stderr and family.lacks[field] in gone.stderr
            refused.append(field)
        elif field == "eta":
            # Only some schedulers heed it; of the others it is refused.
            again = [*command, "--scheduler", "ddim"]
            assert sdcli("generate", *again, "-o", "ddim.png").code == 0
            assert sdcli("generate", *again, *words, "-o", "eta.png").code == 0
            assert (pixels("ddim.png") != pixels("eta.png")).any()
            heeded += [field, "scheduler"]
        elif field == "negative_prompt" and family.guidance == "built-in":
            gone = sdcli("generate", *command, *words, "--dry-run")
            assert gone.code == 2 and "true_cfg_scale" in gone.stderr
            refused.append(field)
            assert sdcli("generate", *command, *words, *VALUES["true_cfg_scale"], "-o", "heeded.png").code == 0
            assert sdcli("generate", *command, *VALUES["true_cfg_scale"], "-o", "without.png").code == 0
            assert (pixels("heeded.png") != pixels("without.png")).any()
        else:
            more = ("--negative", "a green star") if field == "true_cfg_scale" else ()
            assert sdcli("generate", *command, *words, *more, "-o", f"{field}.png").code == 0
            assert (pixels(f"{field}.png") != drawn).any(), f"{field} has no effect"
            heeded.append(field)
    guidance = sdcli("generate", *command, "--cfg", "9", "-o", "guided.png")
    if name.endswith("schnell"):
        assert guidance.code == 2 and "guidance" in guidance.stderr
        refused.append("guidance_scale")
    else:
        assert guidance.code == 0 and (pixels("guided.png") != drawn).any()
        heeded.append("guidance_scale")
    if family.own_scheduler is not None:
        gone = sdcli("generate", *command, "--scheduler", "euler", "--dry-run")
        assert gone.code == 2 and family.own_scheduler in gone.stderr
        refused.append("scheduler")
    odd = [f"{width + 1}x{height}" if word == f"{width}x{height}" else word for word in command]
    gone = sdcli("generate", *odd, "--dry-run")
    assert gone.code == 2 and "multiple" in gone.stderr
    for option, supported in (("--attention-slicing=on", family.slices), ("--vae-tiling", family.tiles)):
        outcome = sdcli("generate", *command, option, "-o", "memory.png")
        assert outcome.code == (0 if supported else 2), outcome.stderr
        (heeded if supported else refused).append(option.strip("-").partition("=")[0])

    record = record_of("one.png")
    assert record["model"]["family"] == family.name and record["model"]["name"] == folder.name
    index = json.loads((folder / "model_index.json").read_text())
    weighted = {p.parent.name for p in folder.glob("*/*.safetensors")} - {"safety_checker", "image_encoder"}
    assert {f.split("/")[0] for f in record["model"]["files"]} == weighted | {"--config"}
    assert weighted <= set(index)
    said = record["request"]
    assert (said["width"], said["height"], said["seed"], said["num_inference_steps"]) == (width, height, 7, 3)
    expected = 0.0 if name.endswith("schnell") else family.defaults["guidance_scale"]
    assert said["guidance_scale"] == expected
    assert record["tokens"]["used"] > 0 and not record["tokens"]["cut"]
    own = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["_class_name"]
    assert record["scheduler"]["class_name"] == own and record["plan"]["pack_size"] == 1

    found = sdcli("verify", "one.png", "--model", str(folder), "--json")
    assert found.code == 0 and found.events[0]["verdict"] == "identical", found.stdout
    (tmp_path / "more.txt").write_text("a red circle\na blue square with a star beside it and a long story\na dot\n")
    done = sdcli("batch", "more.txt", *command[1:], "--batch-size", "2", "-o", "pack/", "--json")
    assert done.code == 0, done.stderr
    (paired,) = (pixels(f"pack/{e['path'].split('/')[-1]}") for e in done.events if e.get("line") == 1)
    difference = int(np.abs(paired - drawn).max())
    assert difference <= 1, f"another picture in a pack: {difference}"
    in_pack = record_of(tmp_path / done.events[0]["path"])["plan"]["pack_size"]
    assert in_pack == (1 if family.alone else 2)

    table("families", {
        "family": family.name, "model": name, "draws": f"{width}x{height}",
        "refused with a reason": " ".join(refused), "heeded": " ".join(heeded), "record": "right",
        "verify": found.events[0]["verdict"], "in a pack of 2": "alone" if family.alone else f"within {difference}",
    })  # fmt: skip


# diffusers tells of names of its own that its own pipelines still use.
@pytest.mark.filterwarnings("ignore::FutureWarning:diffusers")
@pytest.mark.parametrize("name", NAMES)
def test_the_same_pixels_as_a_plain_call(name: str, folders: Any, sdcli: Sdcli) -> None:
    """What is drawn is what a script with diffusers draws: its own defaults, one generator on the CPU."""
    import diffusers
    import torch

    folder, family = folders(name), family_of(name)
    width, height = SIZES[name]
    assert sdcli("generate", *asked(name, folder), "-o", "one.png").code == 0
    pipe = diffusers.DiffusionPipeline.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, use_safetensors=True, safety_checker=None
    )
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            # Where weights lie in memory decides bits: they are put where sdcli puts them.
            for tensor in (*part.parameters(), *part.buffers()):
                tensor.data = tensor.data.clone()
    given: dict[str, Any] = {"guidance_scale": record_of("one.png")["request"]["guidance_scale"]}
    if family.guidance == "true-cfg":
        given = {"true_cfg_scale": given["guidance_scale"], "negative_prompt": " "}
    if family.class_name.startswith(("PixArt", "Sana", "Hunyuan")):
        given["use_resolution_binning"] = False
    if name == "SanaSprintPipeline":
        given["intermediate_timesteps"] = None
    generator = [torch.Generator().manual_seed(7)]
    with torch.no_grad():
        image = pipe(
            prompt=["a red circle"], width=width, height=height, num_inference_steps=3, generator=generator, **given
        ).images[0]  # fmt: skip
    assert (np.asarray(image).astype(int) == pixels("one.png")).all()


def test_each_row_of_the_table_is_diffusers() -> None:
    """The pipeline is there, takes what the family does not lack, and does not take what it lacks for that reason."""
    import inspect

    import diffusers

    assert {n.split()[0] for n in BUILDERS} | {"StableDiffusionPipeline"} == set(FAMILIES)
    for name, family in FAMILIES.items():
        takes = inspect.signature(getattr(diffusers, name).__call__).parameters
        for field in ("negative_prompt", "clip_skip", "eta", "guidance_rescale"):
            assert (field in takes) or field in family.lacks, (name, field)
        assert "guidance_scale" in takes or family.guidance == "true-cfg"


def test_a_family_that_is_not_there(sdcli: Sdcli, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    done = sdcli("generate", "a star", "-m", "model/", "--dry-run")
    assert done.code == 65 and "WanPipeline" in done.stderr and "FluxPipeline" in done.stderr


def test_before_torch_and_before_a_download(sdcli: Sdcli) -> None:
    """What a family can't use is refused for a model that is not here; a look's negative text is left out, and said."""
    done = sdcli("generate", "a star", "-m", "flux-dev", "--negative", "a moon", "--dry-run")
    assert done.code == 2 and "true_cfg_scale" in done.stderr
    done = sdcli("generate", "a star", "-m", "flux-dev", "-p", "oil", "--dry-run", "--json")
    assert done.code == 0 and "left out" in done.stderr
    request = done.events[0]["request"]
    assert request["negative_prompt"] == "" and request["prompt"].startswith("oil painting of a star")
    done = sdcli(
        "generate", "a star", "-m", "flux-dev", "-p", "oil", "--set", "true_cfg_scale=2", "--dry-run", "--json"
    )
    assert "photograph" in done.events[0]["request"]["negative_prompt"]
    done = sdcli("generate", "a star", "-m", "flux-dev", "--attention-slicing", "on", "--dry-run")
    assert done.code == 2 and "sliced" in done.stderr


def test_rows_are_refused_before_anything_is_drawn(folders: Any, sdcli: Sdcli, tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("a star\na moon --negative clouds\na sun --preset oil\n")
    folder = str(folders("FluxPipeline"))
    done = sdcli("batch", "rows.txt", "-m", folder, "--size", "64x64", "--steps", "1", "--json")
    assert done.code == 65 and not any(e["event"] == "image" for e in done.events)
    bad = [e for e in done.events if e["event"] == "error"]
    assert [e["line"] for e in bad] == [2] and "true_cfg_scale" in bad[0]["hint"]
    done = sdcli("batch", "rows.txt", "-m", folder, "--size", "64x64", "--steps", "1", "--json", "--skip-bad-rows")
    assert sorted(e["line"] for e in done.events if e["event"] == "image") == [1, 3]
