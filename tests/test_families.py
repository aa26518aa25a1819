"""Each family of models: it draws, refuses what it can't use, its record is right, and it is drawn again the same."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdcli import models, pipeline
from sdcli.device import DevicePlan
from sdcli.models import FAMILIES, ModelSpec
from sdcli.models.checking import steps_of
from sdcli.request import GenerationRequest
from tests.conftest import Sdcli, pixels, record_of
from tests.families import BUILDERS, SIZES, controlnet, saved

# In every run; the others are slow.
ALWAYS = ("StableDiffusionXLPipeline", "FluxPipeline", "PixArtSigmaPipeline")
NAMES = [pytest.param(n, id=n, marks=() if n in ALWAYS else pytest.mark.slow) for n in sorted(BUILDERS)]
FROM_PICTURES = [n for n in sorted(BUILDERS) if FAMILIES[n.split()[0]].starts]
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


# From pictures


class FromPictures:
    """A model, a picture to start from and a mask, and what is drawn of them."""

    def __init__(self, name: str, folder: Path, sdcli: Sdcli) -> None:
        self.sdcli, self.folder, self.size = sdcli, folder, SIZES[name]
        self.command = [word if word != "3" else "4" for word in asked(name, folder)]
        self.multiple = models.find(ModelSpec(model=str(folder))).multiple
        width, height = self.size
        self.source = np.zeros((height, width, 3), np.uint8) + np.array([200, 60, 40], np.uint8)
        self.source[height // 4 : height // 2, width // 4 : width // 2] = (30, 90, 220)
        self.inside = np.zeros((height, width), bool)
        self.inside[height // 4 : height // 2 + 3, width // 4 : width // 2 + 3] = True
        Image.fromarray(self.source).save("source.png")
        Image.fromarray((self.inside * 255).astype(np.uint8)).save("mask.png")

    def drawn(self, *options: str, to: str = "drawn.png") -> Any:
        done = self.sdcli("generate", *self.command, *options, "-o", to, "--overwrite")
        assert done.code == 0, done.stderr
        return pixels(to)

    def refused(self, *options: str) -> str:
        gone = self.sdcli("generate", *self.command, *options, "--dry-run")
        assert gone.code == 2, gone.stderr
        return gone.stderr

    def same_again(self, *options: str, within: int) -> str:
        """Verify drawn.png, draw it in a pack with another, and return how far that was from it."""
        found = self.sdcli("verify", "drawn.png", "--model", str(self.folder), "--json")
        assert found.code == 0 and found.events[0]["verdict"] == "identical", found.stdout
        Path("more.txt").write_text("a red circle\na blue square with a star beside it and a long story\na dot\n")
        how = ["--batch-size", "2", "-o", "pack/", "--json"]
        done = self.sdcli("batch", "more.txt", *self.command[1:], *options, *how)
        assert done.code == 0, done.stderr
        (paired,) = (pixels(e["path"]) for e in done.events if e.get("line") == 1)
        difference = int(np.abs(paired - pixels("drawn.png")).max())
        assert difference <= within, f"another picture in a pack: {difference}"
        return f"within {difference}" if difference else "same"


@pytest.mark.slow
@pytest.mark.parametrize("name", FROM_PICTURES)
def test_a_family_from_pictures(name: str, folders: Any, sdcli: Sdcli, table: Any) -> None:
    family, at = family_of(name), FromPictures(name, folders(name), sdcli)
    (width, height), start, why = at.size, ["-i", "source.png"], family.no_starts or ""
    row = dict.fromkeys(("image", "hires", "mask", "outpaint"), "refused with a reason" if why else "refused")
    if "image" in family.starts:
        assert (at.drawn(*start, "--strength", "0") == at.source).all()
        words, whole = at.drawn(), at.drawn(*start, "--strength", "1")
        half = at.drawn(*start, "--strength", "0.5")
        assert half.shape == at.source.shape and not any((half == other).all() for other in (at.source, words, whole))
        said = record_of("drawn.png")["request"]
        assert said["strength"] == 0.5 and said["init_image"]["name"] == "source.png"
        assert (said["width"], said["height"], said["num_inference_steps"]) == (width, height, 4)
        row["image"] = at.same_again(*start, "--strength", "0.5", within=1)
        two = at.sdcli("generate", *at.command, *start, "--strength", "0.5", "-c", "2", "-o", "two/")
        first, second = map(pixels, two.lines)
        assert (first == half).all() and (second != half).any()
        Image.new("RGB", (width * 3 + 5, height * 2 + 3)).save("odd.png")
        planned = sdcli("generate", *at.command[:3], "-i", "odd.png", "--dry-run", "--json").events[0]["request"]
        assert planned["width"] > planned["height"] and planned["strength"] == 0.8
        assert planned["width"] % at.multiple == 0 == planned["height"] % at.multiple

        larger = at.drawn("--hires", "2x:0.5")
        assert larger.shape == (2 * height, 2 * width, 3) and (larger[::2, ::2] != words).any()
        # Between the passes a picture is rounded to eight bits; the least difference goes far in these networks.
        row["hires"] = at.same_again("--hires", "2x:0.5", within=16)
        assert at.drawn(*start, "--strength", "0.5", "--hires", "2x:0.5").shape == larger.shape
    else:
        assert why in at.refused(*start) and why in at.refused("--hires", "2x")
    if "mask" in family.starts:
        for options in ((), ("--strength", "0.5")):
            repainted = at.drawn(*start, "--mask", "mask.png", *options)
            assert (repainted == at.source)[~at.inside].all() and (repainted != at.source)[at.inside].mean() > 0.9
            assert record_of("drawn.png")["request"]["strength"] == (0.5 if options else 1.0)
            row["mask"] = at.same_again(*start, "--mask", "mask.png", *options, within=1)
        at.command.remove("--size")
        at.command.remove(f"{width}x{height}")
        wider = at.drawn(*start, "--outpaint", f"left={at.multiple}")
        assert wider.shape[1] == width + at.multiple and (wider[:, at.multiple :] == at.source).all()
        row["outpaint"] = "drawn"
    else:
        said = at.refused(*start, "--mask", "mask.png")
        assert "can't draw over a part of a picture" in said and why in said
    table("families from pictures", {"family": family.name, "model": name} | row)


@pytest.mark.parametrize("name", [p for p in NAMES if p.values[0] in FROM_PICTURES])
def test_steps_that_are_left(name: str, folders: Any, tmp_path: Path) -> None:
    """As many as are reckoned beforehand are drawn, and whoever listens hears of how many from the first on."""
    family, picture = family_of(name), tmp_path / "source.png"
    width, height = SIZES[name]
    Image.new("RGB", (width, height), "red").save(picture)
    (tmp_path / "mask.png").write_bytes(picture.read_bytes())
    pipe = pipeline.load(ModelSpec(model=str(folders(name))), DevicePlan(device="cpu", dtype="fp32"))
    guidance = 0.0 if name.endswith("schnell") else family.defaults["guidance_scale"]
    how: dict[str, Any] = {
        "prompt": "a circle",
        "width": width,
        "height": height,
        "seed": 1,
        "guidance_scale": guidance,
    }
    for steps, strength in ((5, 0.5), (7, 0.3), (10, 0.7), (3, 1.0)):
        for start in {"image", "mask"} & set(family.starts):
            mask = str(tmp_path / "mask.png") if start == "mask" else None
            request = GenerationRequest(
                num_inference_steps=steps, strength=strength, init_image=str(picture), mask=mask, **how
            )
            heard: list[tuple[int, int]] = []
            [*pipe.generate([request], listener=lambda step, to=heard: to.append((step.number, step.of)))]
            left = steps_of(steps, strength, family)
            assert heard == [(number, left) for number in range(1, left + 1)], (steps, strength, start)


@pytest.mark.slow
def test_all_that_stable_diffusion_xl_can_start_from(folders: Any, sdcli: Sdcli, tmp_path: Path) -> None:
    """Words with weights, of two chunks and that change; negative ones; ControlNets; and all of it from a picture."""
    name = "StableDiffusionXLPipeline"
    at = FromPictures(name, folders(name), sdcli)
    net = controlnet(at.folder, tmp_path / "net")
    start, seen = ("-i", "source.png"), {"": at.drawn()}
    for prompt, options in (
        ("a (red:1.8) circle", ()), ("a red circle BREAK on a blue ground", ()), ("a [red:blue:0.5] circle", ()),
        ("a red circle", ("--negative", "a (blue:1.5) square BREAK and more")),
        ("a [red:blue:0.5] circle", start), ("a (red:1.3) circle BREAK [blue|red]", (*start, "--mask", "mask.png")),
        ("a red circle", (*start, "--negative", "[blue:green:0.5]")), ("a red++ circle", ("--prompt-syntax", "compel")),
        ("a red circle", ("--clip-skip", "1", *start)), ("a red circle", ("--variation", "3:0.5")),
        ("a red circle", ("--controlnet", f"{net}=source.png:0.7")),
        ("a red circle", ("--controlnet", f"{net}=source.png:0.7", "--control-preprocess", "invert")),
        ("a red circle", ("--controlnet", f"{net}=source.png:0.7", *start)),
        ("a red circle", ("--controlnet", f"{net}=source.png:0.7", *start, "--mask", "mask.png")),
        ("a red circle", ("--controlnet", f"{net}=source.png", "--controlnet", f"{net}=mask.png:0.3", "--hires", "2x")),
    ):  # fmt: skip
        at.command[0] = prompt
        drawn = at.drawn(*options)
        assert not any(np.array_equal(drawn, other) for other in seen.values()), (prompt, options)
        seen[f"{prompt} {options}"] = drawn
        if "mask.png" in options:
            assert (drawn == at.source)[~at.inside].all()
        found = sdcli("verify", "drawn.png", "--model", str(at.folder), "--json")
        assert found.code == 0 and found.events[0]["verdict"] == "identical", (prompt, options, found.stdout)
    at.command[0] = "a red circle"
    assert (at.drawn("--controlnet", f"{net}=source.png:0") == seen[""]).all()
    # What a start's pipeline has no place for is refused, and not left out.
    assert (at.drawn(*start, "--set", "guidance_rescale=0.7") != at.drawn(*start)).any()
    assert "guidance_rescale" in at.refused("--controlnet", f"{net}=source.png", "--set", "guidance_rescale=0.7")
    assert "no picture to read" in at.refused("--set", f'controlnet={{"name": "{net}"}}')


def test_a_latent_consistency_model_draws_all_its_steps(folders: Any, sdcli: Sdcli) -> None:
    """However little of a picture it may change; what its scheduler has no steps for is refused."""
    name = "LatentConsistencyModelPipeline"
    at = FromPictures(name, folders(name), sdcli)
    at.command[0] = "a (red:1.5) circle BREAK on a blue ground"
    drawn = at.drawn("-i", "source.png", "--strength", "0.1")
    assert (drawn != at.source).any() and record_of("drawn.png")["request"]["strength"] == 0.1
    assert "has 3 steps at a strength of 0.07, not 4" in at.refused("-i", "source.png", "--strength", "0.07")
    assert "--steps is at most 3" in at.refused("--hires", "2x:0.07")


def test_each_row_of_the_table_is_diffusers() -> None:
    """The pipeline is there, takes what the family does not lack, and does not take what it lacks for that reason."""
    import diffusers

    assert {n.split()[0] for n in BUILDERS} | {"StableDiffusionPipeline"} == set(FAMILIES)
    for name, family in FAMILIES.items():
        takes = inspect.signature(getattr(diffusers, name).__call__).parameters
        for field in ("negative_prompt", "clip_skip", "eta", "guidance_rescale"):
            assert (field in takes) or field in family.lacks, (name, field)
        assert "guidance_scale" in takes or family.guidance == "true-cfg"


def test_where_pictures_can_be_started_from_is_diffusers() -> None:
    """Each class is there, and the one that diffusers itself takes; where it has another, there is a reason."""
    import diffusers
    from diffusers.pipelines import auto_pipeline as auto

    keys = {kind.__name__: key for key, kind in auto.AUTO_TEXT2IMAGE_PIPELINES_MAPPING.items()}
    tables = {"image": auto.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING, "mask": auto.AUTO_INPAINT_PIPELINES_MAPPING}
    for name, family in FAMILIES.items():
        takes = {s: inspect.signature(getattr(diffusers, c).__call__).parameters for s, c in family.starts.items()}
        assert set(family.starts) <= {"image", "mask", "control", "control-image", "control-mask"}
        for start, given in takes.items():
            wanted = {
                "image",
                *(["mask_image"] if "mask" in start else []),
                *(["strength"] if start != "control" else []),
            }
            assert wanted <= set(given), (name, start)
            if "control" in start:
                assert "controlnet_conditioning_scale" in given
        # What a start's pipeline does not take of what is taken without one has no effect: it is said, and refused.
        plain = inspect.signature(getattr(diffusers, name).__call__).parameters
        dropped = {s: [f for f in VALUES if f in plain and f not in given] for s, given in takes.items()}
        expected = {s: ["guidance_rescale"] if s in family.unrescaled else [] for s in takes}
        assert {s: [f for f in fields if f not in family.lacks] for s, fields in dropped.items()} == expected, name
        for start, found in tables.items():
            for key, there in ((keys.get(name), start), (f"{keys.get(name)}-controlnet", f"control-{start}")):
                theirs = found[key].__name__ if key in found else None
                ours = family.starts.get(there)
                if theirs and ours:
                    assert ours == theirs, (name, there)
                elif theirs and there == start:
                    assert family.no_starts, f"{name} could draw by {theirs}"
                elif ours:
                    # Those that diffusers has and its table leaves out.
                    assert name in ("ChromaPipeline", "SanaSprintPipeline", "Flux2KleinPipeline"), (name, ours)
            # Classes by name, for families that are not in its tables.
            stem = name.removesuffix("Pipeline").removesuffix("Combined")
            for middle in ("Img2Img",) if start == "image" else ("Inpaint", "Inpainting"):
                if start not in family.starts and hasattr(diffusers, f"{stem}{middle}Pipeline"):
                    assert family.no_starts, f"{name} could draw by {stem}{middle}Pipeline"


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


def test_words_that_change_are_told_of_all_steps_that_are_drawn(folders: Any, sdcli: Sdcli) -> None:
    """A latent consistency model draws all of them from a picture; half of them is half of four."""
    name, start = "LatentConsistencyModelPipeline", ("-i", "source.png", "--strength", "0.25")
    at = FromPictures(name, folders(name), sdcli)
    drawn = {}
    for at.command[0] in ("a red circle", "a blue circle", "a [red:blue:0.5] circle"):
        drawn[at.command[0]] = at.drawn(*start)
    *others, changing = drawn.values()
    assert not any((changing == other).all() for other in others)
