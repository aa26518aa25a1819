"""Adapters: where their names lead, whether they fit, and what they leave behind: nothing."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from msgspec.structs import replace
from PIL import Image
from safetensors.numpy import save_file

from sdcli import models
from sdcli.errors import BadInput, InputMissing, ModelUnavailable, SdcliError, UsageError
from sdcli.models import FAMILIES, Model, ModelSpec, adapters
from sdcli.models.adapters import WHAT, Kind
from sdcli.pipeline import machine
from sdcli.pipeline.adapters import Adapters
from sdcli.pipeline.machine import import_libraries
from sdcli.request import Adapter, GenerationRequest
from tests import adapter_files as made
from tests import families
from tests import hub as hubs
from tests.conftest import Sdcli, record_of
from tests.hub import Hub, Repo
from tests.models_on_disk import DEMO
from tests.running import environment

SHAPES: dict[str, tuple[int, ...]] = {
    "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight": (2, 128),
    "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.lora_B.weight": (128, 2),
}


def zeros(to: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    to.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: np.zeros(shape, "float16") for name, shape in shapes.items()}, to)
    return to


@pytest.fixture(scope="module")
def demo() -> Model:
    return models.find(ModelSpec(model="demo"))


# Finding


def test_where_a_name_leads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that is there, a name in the folder of adapters, a name in one of its folders; with the ending or without."""
    folder = tmp_path / "adapters"
    monkeypatch.chdir(tmp_path)
    own = zeros(tmp_path / "own.safetensors", SHAPES)
    top, deep = zeros(folder / "top.safetensors", SHAPES), zeros(folder / "styles" / "deep.safetensors", SHAPES)

    def path(name: str) -> Path | None:
        return adapters.find("lora", Adapter(name=name), [folder]).path

    assert path(str(own)) == own
    assert path("own.safetensors") == Path("own.safetensors")
    assert path("top") == path("top.safetensors") == top
    assert path("deep") == deep
    zeros(folder / "other" / "deep.safetensors", SHAPES)
    with pytest.raises(UsageError, match="several called deep: .*other.*styles"):
        path("deep")
    with pytest.raises(ModelUnavailable, match="no LoRA called tip; did you mean top"):
        path("tip")
    # A file here is no name: it is found by its path alone.
    with pytest.raises(ModelUnavailable):
        path("own")
    with pytest.raises(InputMissing):
        path("./none.safetensors")
    for name in ("", "a\0b"):
        with pytest.raises(UsageError):
            path(name)
    with pytest.raises(BadInput, match="is a folder"):
        path(str(folder))
    (tmp_path / "words.txt").touch()
    with pytest.raises(BadInput, match="no .safetensors file"):
        path("./words.txt")


class _Trap:
    def __init__(self, to: Path) -> None:
        self.to = to

    def __reduce__(self) -> Any:
        return Path.touch, (self.to,)


@pytest.mark.parametrize("kind", WHAT)
@pytest.mark.parametrize("ending", [".pt", ".bin", ".ckpt", ".pth", ".pkl"])
def test_pickles_are_refused_by_name(tmp_path: Path, kind: Kind, ending: str) -> None:
    file = tmp_path / f"style{ending}"
    file.write_bytes(pickle.dumps(_Trap(tmp_path / "ran")))
    for name in (str(file), f"style{ending}", f"org/name/style{ending}"):
        with pytest.raises(BadInput, match="pickle"):
            adapters.find(kind, Adapter(name=name), [tmp_path])
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", WHAT)
def test_files_that_can_not_be_read(tmp_path: Path, kind: Kind) -> None:
    file = zeros(tmp_path / "style.safetensors", SHAPES)
    whole = file.read_bytes()
    broken = {
        "is truncated": whole[:-10],
        "was cut off": whole[:50],
        "no safetensors file": b"\x10\0\0\0\0\0\0\0" + b"no JSON at all, here",
        "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    }
    for reason, content in broken.items():
        file.write_bytes(content)
        with pytest.raises(BadInput, match=reason) as refused:
            adapters.find(kind, Adapter(name=str(file)))
        assert refused.value.exit_code == 65


def test_a_record_s_adapter_is_found_by_its_hash(tmp_path: Path) -> None:
    folder = tmp_path / "adapters"
    own = zeros(tmp_path / "elsewhere" / "green.safetensors", SHAPES)
    kept = adapters.pin(adapters.find("lora", Adapter(name=str(own), scale=0.5)))
    assert (kept.name, kept.scale, kept.commit) == ("green.safetensors", 0.5, None)
    # It is not looked for where it was, nor opened by a path that a record names.
    for name in ("green.safetensors", str(own)):
        with pytest.raises(ModelUnavailable, match=r"drawn with the LoRA .*green.safetensors \(SHA-256 [0-9a-f]{12}"):
            adapters.find("lora", msgspec.structs.replace(kept, name=name), [folder])
    zeros(folder / "green.safetensors", SHAPES | {"another": (1,)})
    with pytest.raises(ModelUnavailable, match="not here"):
        adapters.find("lora", kept, [folder])
    zeros(folder / "green.safetensors", SHAPES)
    assert adapters.find("lora", kept, [folder]).path == folder / "green.safetensors"
    assert adapters.pin(adapters.find("lora", kept, [folder])) == kept


def test_a_controlnet_is_a_folder_or_a_file(tmp_path: Path) -> None:
    folder = tmp_path / "edges"
    zeros(folder / "diffusion_pytorch_model.safetensors", SHAPES)
    with pytest.raises(BadInput, match="no config.json"):
        adapters.find("controlnet", Adapter(name=str(folder)))
    (folder / "config.json").write_text('{"_class_name": "ControlNetModel"}')
    for name in (str(folder), "edges"):
        found = adapters.find("controlnet", Adapter(name=name), [tmp_path])
        assert found.path == folder and found.name == "edges"
        assert adapters.sha256(found) == models.sha256_of(folder / "diffusion_pytorch_model.safetensors")
    (folder / "diffusion_pytorch_model.safetensors").rename(folder / "diffusion_pytorch_model.bin")
    with pytest.raises(BadInput, match="pickles only"):
        adapters.find("controlnet", Adapter(name="edges"), [tmp_path])


# Words in a prompt


@pytest.mark.parametrize(
    ("prompt", "rest", "named"),
    [
        ("a red cat", "a red cat", []),
        ("a cat <lora:green:0.8>", "a cat", [("green", 0.8)]),
        ("<lora:green> a cat", "a cat", [("green", 1.0)]),
        ("a <lora:x:1> cat, <lora:y.safetensors:-.5>  blue", "a cat,  blue", [("x", 1.0), ("y", -0.5)]),
        ("<lora:a:0.5:0.5><lora:b:te=2:unet=2>", "", [("a", 0.5), ("b", 2.0)]),
        ("a < b, <3, <style>", "a < b, <3, <style>", []),
    ],
)
def test_tags_name_loras(prompt: str, rest: str, named: list[tuple[str, float]]) -> None:
    left, found = adapters.tags(prompt)
    assert left == rest
    assert [(a.name, a.scale) for a in found] == named


@pytest.mark.parametrize(
    ("tag", "word"),
    [
        ("<lyco:x:1>", "<lyco:x:1>"),
        ("<hypernet:x>", "does not know"),
        ("<lora:x:0.5:0.7>", "one weight for the text encoder"),
        ("<lora:x:much>", "no weight"),
        ("<lora:x:nan>", "no weight"),
        ("<lora:x:1:1:8>", "no weight"),
        ("<lora::1>", "names no file"),
        ("<lora:../x:1>", "names no file"),
        ("<lora:/etc/x:1>", "names no file"),
        ("<lora:a\\b>", "names no file"),
        ("<lora:~x>", "names no file"),
        ("<lora:..>", "names no file"),
        ("<lora:.safetensors>", "names no file"),
    ],
)
def test_tags_that_are_refused(tag: str, word: str) -> None:
    with pytest.raises(UsageError, match=word):
        adapters.tags(f"a cat {tag}")


def test_a_tag_is_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    zeros(tmp_path / "here.safetensors", SHAPES)
    (_, (found,)) = adapters.tags("<lora:here.safetensors>")
    with pytest.raises(ModelUnavailable):
        adapters.find("lora", found, [tmp_path / "adapters"])


# Whether it fits

SDXL = {k.replace("unet.mid", "unet.down"): (2, 2048) if "lora_A" in k else (128, 2) for k in SHAPES}
FLUX = {"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": (2, 8)}
CONTROL = {"controlnet_cond_embedding.conv_in.weight": (1, 1), "mid_block.attn2.to_k.weight": (1, 768)}
IP = {"image_proj.proj.weight": (8, 16), "ip_adapter.1.to_k_ip.weight": (4, 768)}
MISFITS: dict[str, tuple[Kind, dict[str, tuple[int, ...]], str]] = {
    "an SDXL LoRA": ("lora", SDXL, "for SDXL, and does not fit demo: its words are 2048 wide, and not 128"),
    "an SDXL LoRA's second encoder": (
        "lora",
        {"lora_te2_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight": (2, 128)},
        "for SDXL, and does not fit demo: demo has one text encoder",
    ),
    "another text encoder": (
        "lora",
        {"lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight": (2, 768)},
        "its text encoder is 768 wide, and not 128",
    ),
    "a Flux LoRA": ("lora", FLUX, "for a transformer"),
    "kohya's Flux LoRA": ("lora", {"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": (2, 8)}, "for a transformer"),
    "LoHa": ("lora", {"lora_unet_mid_block_x.hada_w1_a": (2, 8)}, "LyCORIS"),
    "no LoRA": ("lora", {"model.weight": (2, 8)}, "no key of it fits"),
    "a LoRA of nothing": ("lora", {"decoder.x.lora_A.weight": (2, 8)}, "no key of x.safetensors fits demo"),
    "SD 1.5's embedding": ("embedding", {"emb_params": (2, 768)}, "for Stable Diffusion 1.x, .* 768 wide, and not 128"),
    "SDXL's embedding": ("embedding", {"clip_l": (2, 768), "clip_g": (2, 1280)}, "for two text encoders"),
    "no embedding": ("embedding", {"a": (2, 128), "b": (2, 128)}, "is no embedding"),
    "a cube": ("embedding", {"a": (2, 2, 128)}, "is no embedding"),
    "SD 1.5's ControlNet": ("controlnet", CONTROL, "for Stable Diffusion 1.x"),
    "no ControlNet": ("controlnet", SHAPES, "no key of it fits"),
    "a Control-LoRA": ("controlnet", CONTROL | {"lora_controlnet": (1,)}, "Control-LoRA"),
    "SD 1.5's IP-Adapter": ("ip_adapter", IP, "for Stable Diffusion 1.x"),
    "no IP-Adapter": ("ip_adapter", SHAPES, "no key of it fits"),
    "a face's IP-Adapter": ("ip_adapter", IP | {"ip_adapter.1.to_k_lora.down.weight": (1, 1)}, "FaceID"),
    "one without an encoder": ("ip_adapter", IP | {"ip_adapter.1.to_k_ip.weight": (4, 128)}, "no image encoder beside it"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISFITS)
def test_what_was_made_for_another_model_is_refused(tmp_path: Path, demo: Model, case: str) -> None:
    kind, shapes, word = MISFITS[case]
    found = adapters.find(kind, Adapter(name=str(zeros(tmp_path / "x.safetensors", shapes))))
    with pytest.raises(BadInput, match=word) as refused:
        adapters.check(kind, found, demo)
    assert "x.safetensors" in refused.value.message and refused.value.hint


def test_a_controlnet_s_configuration_is_compared(tmp_path: Path, demo: Model) -> None:
    folder = tmp_path / "edges"
    zeros(folder / "diffusion_pytorch_model.safetensors", CONTROL)
    for config, word in (
        ({"_class_name": "ControlNetUnionModel"}, "it is ControlNetUnionModel"),
        ({"_class_name": "ControlNetModel", "cross_attention_dim": 2048}, "for SDXL"),
        ({"_class_name": "ControlNetModel", "block_out_channels": [1, 2]}, "block_out_channels"),
    ):
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(BadInput, match=word):
            adapters.check("controlnet", adapters.find("controlnet", Adapter(name=str(folder))), demo)


def test_the_table_of_loaders_is_diffusers() -> None:
    """What a family is said to take, its class has a loader for, or AutoPipeline a ControlNet's pipeline."""
    import diffusers
    from diffusers.loaders import IPAdapterMixin, TextualInversionLoaderMixin
    from diffusers.loaders.lora_base import LoraBaseMixin
    from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING as AUTO

    names = {kind.__name__: name for name, kind in AUTO.items()}
    for class_name in FAMILIES:
        kind = getattr(diffusers, class_name)
        assert adapters.takes("lora", class_name) == issubclass(kind, LoraBaseMixin), class_name
        if class_name not in ("FluxPipeline", "ChromaPipeline"):
            assert adapters.takes("embedding", class_name) == issubclass(kind, TextualInversionLoaderMixin), class_name
        assert adapters.takes("ip_adapter", class_name) == issubclass(kind, IPAdapterMixin), class_name
        if adapters.takes("controlnet", class_name):
            assert f"{names[class_name]}-controlnet" in AUTO


def test_a_family_without_a_loader_refuses(demo: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    sd3 = as_family(demo, "StableDiffusion3Pipeline")
    for kind in ("embedding", "controlnet", "ip_adapter"):
        with pytest.raises(UsageError, match="stable-diffusion-3.*can't use") as refused:
            adapters.check_kind(kind, sd3)  # type: ignore[arg-type]
        assert refused.value.field == kind
    adapters.check_kind("lora", sd3)
    with pytest.raises(UsageError, match="LoRA"):
        adapters.check_kind("lora", as_family(demo, "PixArtSigmaPipeline"))
    monkeypatch.setattr(adapters, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="peft") as refused:
        adapters.check_kind("lora", demo)
    assert refused.value.hint == "pip install 'sdcli[lora]'"


def as_family(model: Model, class_name: str) -> Model:
    """Return a model as one of another family."""
    return replace(model, family=FAMILIES[class_name])


@pytest.mark.parametrize(
    ("file", "shapes", "token", "word", "count"),
    [
        ("shiny", {"emb_params": (3, 128)}, None, "shiny", 3),
        ("MyStyle", {"emb_params": (1, 128)}, None, "mystyle", 1),
        ("shiny", {"<cat-toy>": (128,)}, None, "<cat-toy>", 1),
        ("shiny", {"<cat-toy>": (2, 128)}, "<dog>", "<dog>", 2),
        ("web", {"clip_l": (4, 768), "clip_g": (4, 1280)}, None, "web", 4),
    ],
)
def test_an_embedding_s_word(
    tmp_path: Path, file: str, shapes: dict[str, tuple[int, ...]], token: str | None, word: str, count: int
) -> None:
    found = adapters.find("embedding", Adapter(name=str(zeros(tmp_path / f"{file}.safetensors", shapes)), token=token))
    assert adapters.embedding_vectors(found) == (word, count)
    assert adapters.pin(found).token == word


# The hub

READY = """
import json, sys
import msgspec
from sdcli.errors import SdcliError
from sdcli.models import adapters
from sdcli.models.hub import offline
from sdcli.request import Adapter
said = []
for kind, adapter, away in json.loads(sys.argv[1]):
    offline(away)
    try:
        found = adapters.ready(kind, msgspec.convert(adapter, Adapter), [], said.append)
        told = {"path": str(found.path), "pin": msgspec.to_builtins(adapters.pin(found))}
    except SdcliError as error:
        told = {"error": type(error).__name__, "message": error.message, "hint": error.hint}
    print(json.dumps(told | {"said": said}))
    said.clear()
assert "torch" not in sys.modules
"""


def asked(hub: Hub, home: Path, *what: tuple[Kind, dict[str, Any], bool]) -> list[dict[str, Any]]:
    """Return what comes of fetching adapters, one after the other, in a process that knows this hub."""
    env = environment(home) | {"HF_ENDPOINT": hub.url}
    argv = [sys.executable, "-c", READY, json.dumps(what)]
    done = subprocess.run(argv, capture_output=True, text=True, env=env, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_hub_s_adapters_are_fetched_once(tmp_path: Path) -> None:
    """By id: the one file that is wanted, at a commit that records keep; the second time nobody is asked."""
    repo = tmp_path / "repo"
    zeros(repo / "pytorch_lora_weights.safetensors", SHAPES)
    zeros(repo / "checkpoint-1" / "model.safetensors", SHAPES | {"more": (1,)})
    (repo / "optimizer.bin").write_bytes(b"")
    with hubs.serving(org__style=Repo(repo)) as hub:
        first, again, gone = asked(
            hub,
            tmp_path / "home",
            ("lora", {"name": "org/style", "scale": 0.5}, False),
            ("lora", {"name": "org/style", "scale": 0.5}, True),
            ("lora", {"name": "org/other"}, True),
        )
        assert hub.downloaded("org/style") == {"pytorch_lora_weights.safetensors"}
        commit = hub.repos["org/style"].commit
        pin = first["pin"]
        assert (pin["name"], pin["commit"]) == ("org/style/pytorch_lora_weights.safetensors", commit)
        assert pin["sha256"] == models.sha256_of(repo / "pytorch_lora_weights.safetensors")
        assert any("downloading org/style" in s for s in first["said"])
        assert again["pin"] == pin and not again["said"]
        assert gone["error"] == "ModelUnavailable" and "offline" in gone["message"] and "demo" not in gone["hint"]
        # What a record names is found in the cache, fetched at its commit, and must have its hash.
        kept, fetched, wrong = asked(
            hub,
            tmp_path / "home",
            ("lora", pin, True),
            ("lora", pin | {"name": "org/style"}, False),
            ("lora", pin | {"sha256": "0" * 64}, False),
        )
        assert kept["pin"] == pin and fetched["pin"]["sha256"] == pin["sha256"]
        assert wrong["error"] == "ModelUnavailable" and "it was drawn with" in wrong["message"]


def test_repositories_that_do_not_say_which_file(tmp_path: Path) -> None:
    several, pickled, one = tmp_path / "several", tmp_path / "pickled", tmp_path / "one"
    for name in ("a", "b"):
        zeros(several / f"{name}.safetensors", SHAPES | {name: (1,)})
    pickled.mkdir()
    (pickled / "learned_embeds.bin").write_bytes(b"")
    zeros(one / "pixel.safetensors", SHAPES)
    with hubs.serving(org__several=Repo(several), org__pickled=Repo(pickled), org__one=Repo(one)) as hub:
        refused, chosen, missing, only, bare, nowhere = asked(
            hub,
            tmp_path / "home",
            ("lora", {"name": "org/several"}, False),
            ("lora", {"name": "org/several/b.safetensors"}, False),
            ("lora", {"name": "org/several/c.safetensors"}, False),
            ("lora", {"name": "org/one"}, False),
            ("embedding", {"name": "org/pickled"}, False),
            ("lora", {"name": "org/none"}, False),
        )
        assert refused["error"] == "UsageError" and "a.safetensors, b.safetensors" in refused["message"]
        assert chosen["pin"]["name"] == "org/several/b.safetensors"
        assert missing["error"] == "BadInput" and "no c.safetensors" in missing["message"]
        assert only["pin"]["name"] == "org/one/pixel.safetensors"
        assert bare["error"] == "BadInput" and "pickles only" in bare["message"]
        assert nowhere["error"] == "ModelUnavailable" and "the hub has no org/none" in nowhere["message"]
        assert hub.downloaded("org/several") == {"b.safetensors"} and not hub.downloaded("org/pickled")


def test_a_controlnet_of_the_hub(tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    for variant in ("", ".fp16"):
        zeros(repo / f"diffusion_pytorch_model{variant}.safetensors", CONTROL)
    (repo / "config.json").write_text('{"_class_name": "ControlNetModel"}')
    (repo / "diffusion_pytorch_model.bin").write_bytes(b"")
    with hubs.serving(org__edges=Repo(repo)) as hub:
        first, again = asked(
            hub,
            tmp_path / "home",
            ("controlnet", {"name": "org/edges"}, False),
            ("controlnet", {"name": "org/edges"}, True),
        )
        assert hub.downloaded("org/edges") == {"config.json", "diffusion_pytorch_model.fp16.safetensors"}
        assert first["pin"] == again["pin"] and first["pin"]["name"] == "org/edges"


def test_an_ip_adapter_of_the_hub_brings_its_encoder(tmp_path: Path) -> None:
    """Out of folders, as h94/IP-Adapter has them: the file, and the one encoder that gives what it reads."""
    repo = tmp_path / "repo"
    zeros(repo / "sdxl_models" / "ip.safetensors", IP)
    zeros(repo / "sdxl_models" / "other.safetensors", IP)
    for folder, width in (("models", 16), ("sdxl_models", 24)):
        encoder = repo / folder / "image_encoder"
        zeros(encoder / "model.safetensors", {folder: (1,)})
        (encoder / "pytorch_model.bin").write_bytes(b"")
        (encoder / "config.json").write_text(json.dumps({"projection_dim": width}))
    with hubs.serving(org__ip=Repo(repo)) as hub:
        name = "org/ip/sdxl_models/ip.safetensors"
        first, again = asked(
            hub, tmp_path / "home", ("ip_adapter", {"name": name}, False), ("ip_adapter", {"name": name}, True)
        )
        assert first["pin"] == again["pin"] and first["pin"]["name"] == name
        assert first["pin"]["commit"] == hub.repos["org/ip"].commit
        assert hub.downloaded("org/ip") == {
            "sdxl_models/ip.safetensors",
            "sdxl_models/image_encoder/config.json",
            "models/image_encoder/config.json",
            "models/image_encoder/model.safetensors",
        }


# On a model

QUIET = {"num_inference_steps": 2, "output_type": "np"}


class Stage:
    """A plain pipeline of diffusers, with what puts adapters on it, and a way to look at what it draws."""

    def __init__(self, folder: Path, name: str) -> None:
        import_libraries()
        import diffusers

        self.model = models.find(ModelSpec(model=str(folder) if name != "demo" else "demo"))
        assert self.model.family is not None
        kind = getattr(diffusers, self.model.family.class_name)
        absent = {"safety_checker": None, "requires_safety_checker": False} if name == "demo" else {}
        self.pipe = kind.from_pretrained(folder, local_files_only=True, use_safetensors=True, **absent)
        self.pipe.set_progress_bar_config(disable=True)
        for network in [n for n in self.pipe.components.values() if isinstance(n, torch.nn.Module)]:
            machine.align(network)
        self.said: list[str] = []
        self.adapters = Adapters(self.pipe, self.model, [], self.said.append)
        self.base = self.draw()

    def draw(self, prompt: str = "a red circle", pipe: Any = None, **more: Any) -> Any:
        pipe = pipe or self.pipe
        generator = torch.Generator().manual_seed(1)
        size = {"height": 64, "width": 64}
        return pipe(prompt, generator=generator, **size, **QUIET, **more).images[0]

    def apply(self, **given: Any) -> tuple[dict[str, Any], ...]:
        return self.adapters.apply(GenerationRequest(prompt="", **given))


@pytest.fixture(scope="module")
def sd() -> Iterator[Stage]:
    yield Stage(DEMO, "demo")


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    yield Stage(families.saved("StableDiffusionXLPipeline", tmp_path_factory.mktemp("models") / "sdxl"), "sdxl")


@pytest.fixture(params=["sd", "sdxl"])
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """A model without adapters, which is again what it was when the test has ended."""
    stage = request.getfixturevalue(request.param)
    stage.said.clear()
    yield stage
    stage.apply()
    assert np.array_equal(stage.draw(), stage.base), "an adapter left something behind"


def texts(stage: Stage) -> tuple[str, ...]:
    return tuple(p for p in ("text_encoder", "text_encoder_2") if p in stage.model.components)


def one(path: Path, scale: float = 1.0, **more: Any) -> tuple[Adapter, ...]:
    return (Adapter(name=str(path), scale=scale, **more),)


@contextmanager
def plainly() -> Iterator[None]:
    """Let the libraries tell of what they will, where they are called without sdcli."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def changes(stage: Stage) -> dict[str, torch.Tensor]:
    """Return what the LoRAs that are on add to each layer's weights."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    found: dict[str, torch.Tensor] = {}
    for part in ("unet", *texts(stage)):
        for name, layer in getattr(stage.pipe, part).named_modules():
            if isinstance(layer, BaseTunerLayer):
                for a in [a for a in layer.active_adapters if a in layer.lora_A]:
                    delta = layer.lora_B[a].weight @ layer.lora_A[a].weight * layer.scaling[a]
                    found[f"{part}.{name}"] = found.get(f"{part}.{name}", 0) + delta.detach()
    return found


WITHOUT_OUT = ("q_proj", "k_proj", "v_proj")
LAYOUTS: dict[str, dict[str, Any]] = {
    "peft": {"layout": "peft"},
    "diffusers": {"layout": "diffusers"},
    "kohya": {"layout": "kohya"},
    "kohya with an alpha": {"layout": "kohya", "alphas": [1.0]},
    "kohya with alphas": {"layout": "kohya", "alphas": [1.0, 4.0, 2.0]},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "text", [("q_proj", "k_proj", "v_proj", "out_proj", "fc1"), WITHOUT_OUT], ids=["whole", "no out_proj"]
)
def test_every_layer_gets_what_the_file_says(stage: Stage, tmp_path: Path, layout: str, text: tuple[str, ...]) -> None:
    """Up times down times alpha over rank, in each layer that the file names: plain diffusers loses some, and takes one alpha."""
    if LAYOUTS[layout]["layout"] == "diffusers" and text == WITHOUT_OUT:
        text = (*text, "out_proj")
    layers = made.layers(stage.pipe) | made.layers(stage.pipe, texts(stage), text)
    file = made.saved(made.lora(layers, **LAYOUTS[layout]), tmp_path / "x.safetensors")
    stage.apply(lora=one(file, 0.5))
    halves, alphas = made.lora(layers), LAYOUTS[layout].get("alphas", [2.0])
    found = changes(stage)
    for at, name in enumerate(layers):
        delta = halves[f"{name}.lora_B.weight"] @ halves[f"{name}.lora_A.weight"] * alphas[at % len(alphas)] / 2 * 0.5
        torch.testing.assert_close(found.pop(name), delta, atol=1e-6, rtol=1e-5)
    assert not any(delta.any() for delta in found.values())
    assert not stage.said


def test_names_of_sdxl_s_authors(sdxl: Stage, tmp_path: Path) -> None:
    """Most LoRAs of SDXL name its layers as its authors did."""
    layers = made.layers(sdxl.pipe, ("unet", *texts(sdxl)))
    for alphas in ([1.0], [1.0, 4.0]):
        state = made.lora(layers, layout="kohya", alphas=alphas, per_block=sdxl.pipe.unet.config.layers_per_block)
        assert any("input_blocks_" in key for key in state) and any("output_blocks_" in key for key in state)
        sdxl.apply(lora=one(made.saved(state, tmp_path / f"{len(alphas)}.safetensors")))
        plain, found = made.lora(layers), changes(sdxl)
        for at, name in enumerate(layers):
            delta = plain[f"{name}.lora_B.weight"] @ plain[f"{name}.lora_A.weight"] * alphas[at % len(alphas)] / 2
            torch.testing.assert_close(found[name], delta, atol=1e-6, rtol=1e-5)
    sdxl.apply()
    assert np.array_equal(sdxl.draw(), sdxl.base)


def test_loras_draw_what_diffusers_draws(stage: Stage, tmp_path: Path) -> None:
    """The pixels of plain calls, to the last bit; each alone, both in their order, and the base again."""
    layers = made.layers(stage.pipe, ("unet", *texts(stage)))
    a = made.saved(made.lora(layers, seed=1), tmp_path / "a.safetensors")
    b = made.saved(made.lora(layers, seed=2, layout="kohya"), tmp_path / "b.safetensors")
    told = stage.apply(lora=(*one(a, 0.7), *one(b, -0.4)))
    both = stage.draw()
    assert [(t["kind"], t["name"], t["scale"]) for t in told] == [
        ("lora", "a.safetensors", 0.7),
        ("lora", "b.safetensors", -0.4),
    ]
    assert told[0]["sha256"] == models.sha256_of(a)
    stage.apply(lora=one(b, -0.4))
    alone = stage.draw()
    stage.apply(lora=(*one(a, 0.7), *one(b, -0.4)))
    assert np.array_equal(stage.draw(), both)
    stage.apply()
    assert np.array_equal(stage.draw(), stage.base)
    with plainly():
        for name, file in (("a", a), ("b", b)):
            stage.pipe.load_lora_weights(str(file), adapter_name=name)
    stage.pipe.set_adapters(["a", "b"], adapter_weights=[0.7, -0.4])
    assert np.array_equal(stage.draw(), both)
    stage.pipe.set_adapters(["b"], adapter_weights=[-0.4])
    assert np.array_equal(stage.draw(), alone)
    stage.pipe.unload_lora_weights()
    for part in ("unet", *texts(stage)):  # peft has marked them as not to be trained, and kernels go by it.
        getattr(stage.pipe, part).requires_grad_(True)
    assert not np.array_equal(both, alone) and not np.array_equal(alone, stage.base)


def test_scale_0_changes_no_pixel(stage: Stage, tmp_path: Path) -> None:
    file = made.saved(made.lora(made.layers(stage.pipe)), tmp_path / "a.safetensors")
    assert stage.apply(lora=one(file, 0.0)) == ()
    assert np.array_equal(stage.draw(), stage.base)
    stage.apply(lora=one(file, 0.5))
    half = stage.draw()
    assert not np.array_equal(half, stage.base)
    # Twice the same is its sum.
    stage.apply(lora=one(file, 0.25) * 2)
    assert np.array_equal(stage.draw(), half)
    stage.apply(lora=one(file, 0.0))
    assert np.array_equal(stage.draw(), stage.base)


def test_keys_that_fit_nothing(stage: Stage, tmp_path: Path) -> None:
    """None that fits is an error; some that do not are told."""
    layers = made.layers(stage.pipe)
    deeper = {
        name.replace("mid_block", "down_blocks.7").replace("_blocks.1", "_blocks.9"): s for name, s in layers.items()
    }
    deeper = {name: shape for name, shape in deeper.items() if name not in layers}
    nothing = made.saved(made.lora(deeper), tmp_path / "nothing.safetensors")
    with pytest.raises(BadInput, match="no key of nothing.safetensors fits|can't be loaded") as refused:
        stage.apply(lora=one(nothing))
    assert refused.value.exit_code == 65
    assert np.array_equal(stage.draw(), stage.base)
    some = made.saved(made.lora(layers | deeper), tmp_path / "some.safetensors")
    stage.apply(lora=one(some))
    assert len(changes(stage)) == len(layers)
    (line,) = stage.said
    assert f"{len(deeper)} of its {len(layers) + len(deeper)} layers" in line


def test_a_lora_that_fails_midway_leaves_nothing(stage: Stage, tmp_path: Path) -> None:
    """One layer has another shape: what was on is off, and the next request is drawn as if it had not been."""
    layers = made.layers(stage.pipe)
    good = made.saved(made.lora(layers), tmp_path / "good.safetensors")
    stage.apply(lora=one(good))
    drawn = stage.draw()
    last = list(layers)[-1]
    bad = made.saved(made.lora(layers | {last: (layers[last][0] + 8, layers[last][1])}), tmp_path / "bad.safetensors")
    with pytest.raises(BadInput, match="bad.safetensors"):
        stage.apply(lora=(*one(good), *one(bad)))
    assert np.array_equal(stage.draw(), stage.base)
    stage.apply(lora=one(good))
    assert np.array_equal(stage.draw(), drawn)


def embedded(stage: Stage, count: int, seed: int = 0) -> dict[str, torch.Tensor]:
    widths = [getattr(stage.pipe, part).config.hidden_size for part in texts(stage)]
    keys = ("clip_l", "clip_g") if len(widths) > 1 else ("emb_params",)
    return {k: made.embedding(w, count, seed=seed)["emb_params"] for k, w in zip(keys, widths, strict=True)}


def test_embeddings_teach_words(stage: Stage, tmp_path: Path) -> None:
    """A word's vectors stand where the word does; other prompts stay what they were, and the word is unknown again after."""
    tokenizers = [getattr(stage.pipe, p.replace("text_encoder", "tokenizer")) for p in texts(stage)]
    before = stage.draw("a Shiny red circle")
    sizes = [len(t) for t in tokenizers]
    shiny = made.saved(embedded(stage, 3), tmp_path / "Shiny.safetensors")
    other = made.saved(embedded(stage, 1, seed=1), tmp_path / "other.safetensors")
    told = stage.apply(embedding=(*one(shiny), *one(other, token="<o>")))
    assert [t["token"] for t in told] == ["shiny", "<o>"] and stage.adapters.tokens == {"shiny": 3, "<o>": 1}
    for part, tokenizer, size in zip(texts(stage), tokenizers, sizes, strict=True):
        ids = tokenizer(stage.pipe.maybe_convert_prompt("a shiny <o>", tokenizer)).input_ids[2:-1]
        assert ids == [size, size + 1, size + 2, size + 3]
        weights = getattr(stage.pipe, part).get_input_embeddings().weight
        key = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}[part] if len(sizes) > 1 else "emb_params"
        assert torch.equal(weights[size : size + 3], embedded(stage, 3)[key])
    assert np.array_equal(stage.draw(), stage.base)
    assert not np.array_equal(stage.draw("a Shiny red circle"), before)
    # Changed for another, and taken away.
    stage.apply(embedding=one(other, token="shiny"))
    assert stage.adapters.tokens == {"shiny": 1}
    stage.apply()
    assert [len(t) for t in tokenizers] == sizes and stage.adapters.tokens == {}
    assert np.array_equal(stage.draw("a Shiny red circle"), before)
    known = next(w for w in tokenizers[0].get_vocab() if len(w) > 2 and w.isalpha())
    with pytest.raises(UsageError, match="knows .* already"):
        stage.apply(embedding=(*one(other), *one(shiny, token=known)))
    assert [len(t) for t in tokenizers] == sizes


def test_ip_adapters_read_pictures(stage: Stage, tmp_path: Path) -> None:
    """Each with its own picture and scale, as plain diffusers draws them; what goes with them goes when they do."""
    made.image_encoder(tmp_path / "image_encoder")
    a, b = (made.ip_adapter(stage.pipe, tmp_path / f"{n}.safetensors", seed=s) for n, s in (("a", 1), ("b", 2)))
    red, blue = (Image.new("RGB", (32, 32), colour) for colour in ("red", "blue"))
    told = stage.apply(ip_adapter=one(a, 0.6))
    assert [(t["kind"], t["name"], t["scale"]) for t in told] == [("ip_adapter", "a.safetensors", 0.6)]
    alone = stage.draw(ip_adapter_image=red)
    assert not np.array_equal(alone, stage.base) and not np.array_equal(alone, stage.draw(ip_adapter_image=blue))
    assert not stage.adapters.sliceable
    stage.apply(ip_adapter=(*one(a, 0.6), *one(b, 0.3)))
    both = stage.draw(ip_adapter_image=[red, blue])
    assert stage.adapters.changes(GenerationRequest(prompt="")) and stage.apply(ip_adapter=one(a, 0.0)) == ()
    assert stage.adapters.sliceable and not stage.adapters.changes(GenerationRequest(prompt=""))
    assert stage.pipe.image_encoder is None and stage.pipe.feature_extractor is None
    assert np.array_equal(stage.draw(), stage.base)
    with plainly():
        stage.pipe.load_ip_adapter(str(tmp_path), subfolder="", weight_name=["a.safetensors", "b.safetensors"])
    stage.pipe.set_ip_adapter_scale([0.6, 0.3])
    assert np.array_equal(stage.draw(ip_adapter_image=[red, blue]), both)
    stage.pipe.unload_ip_adapter()
    stage.pipe.register_modules(image_encoder=None, feature_extractor=None)
    (tmp_path / "image_encoder" / "config.json").write_text('{"projection_dim": 7}')
    with pytest.raises(BadInput, match="gives 7 numbers, and it reads 16"):
        stage.apply(ip_adapter=one(a))


def test_an_ip_adapter_and_a_lora_share_a_model(stage: Stage, tmp_path: Path) -> None:
    """Whichever comes first and goes first."""
    made.image_encoder(tmp_path / "image_encoder")
    ip = one(made.ip_adapter(stage.pipe, tmp_path / "ip.safetensors"), 0.5)
    lora = one(made.saved(made.lora(made.layers(stage.pipe)), tmp_path / "lora.safetensors"), 0.5)
    word = one(made.saved(embedded(stage, 2), tmp_path / "shiny.safetensors"))
    red = Image.new("RGB", (32, 32), "red")
    stage.apply(ip_adapter=ip, lora=lora, embedding=word)
    all_three = stage.draw("a shiny circle", ip_adapter_image=red)
    stage.apply(ip_adapter=ip)
    stage.apply(ip_adapter=ip, lora=lora, embedding=word)
    assert np.array_equal(stage.draw("a shiny circle", ip_adapter_image=red), all_three)
    stage.apply(lora=lora)
    with_lora = stage.draw()
    stage.apply(lora=lora, ip_adapter=ip, embedding=word)
    assert np.array_equal(stage.draw("a shiny circle", ip_adapter_image=red), all_three)
    stage.apply(lora=lora)
    assert np.array_equal(stage.draw(), with_lora)


def test_controlnets_come_from_folders_and_files(stage: Stage, tmp_path: Path) -> None:
    """The same network out of both, and the pixels that diffusers draws with it."""
    import diffusers

    plain = made.controlnet(stage.pipe)
    plain.save_pretrained(tmp_path / "edges")
    file = tmp_path / "edges.safetensors"
    file.write_bytes((tmp_path / "edges" / "diffusion_pytorch_model.safetensors").read_bytes())
    kind = getattr(diffusers, type(stage.pipe).__name__.replace("Pipeline", "ControlNetPipeline"))
    picture = Image.new("RGB", (64, 64), "white")

    def draw(net: Any) -> Any:
        parts = {k: v for k, v in stage.pipe.components.items()}
        more = {"requires_safety_checker": False} if "safety_checker" in parts else {}
        pipe = kind(**parts, controlnet=net, **more)
        pipe.set_progress_bar_config(disable=True)
        return stage.draw(pipe=pipe, image=picture)

    wanted = draw(plain)
    assert not np.array_equal(wanted, stage.base)
    sources = [tmp_path / "edges", file]
    if len(texts(stage)) == 1:  # Of SDXL's there are none in their authors' layout.
        sources.append(made.saved(made.as_authors_named(plain), tmp_path / "control_edges.safetensors"))
    for path in sources:
        given = GenerationRequest(prompt="", controlnet=one(path, image="white.png"))
        (told,) = stage.adapters.apply(given)
        assert (told["name"], told["image"]) == (path.name, "white.png")
        stage.adapters.apply(given)
        (net,) = stage.adapters.controlnets(given)
        assert np.array_equal(draw(net), wanted)
        assert stage.adapters.controlnets(given)[0] is net
    stage.adapters.apply(GenerationRequest(prompt=""))
    assert stage.adapters.controlnets(GenerationRequest(prompt="")) == []
    cut = made.saved(
        {k: v for k, v in plain.state_dict().items() if "mid_block" not in k}, tmp_path / "cut.safetensors"
    )
    with pytest.raises(BadInput, match="cut.safetensors"):
        stage.apply(controlnet=one(cut))


def test_adapters_take_the_model_s_precision(tmp_path: Path) -> None:
    """In bf16 all that is put on is bf16 too."""
    import diffusers

    pipe = diffusers.StableDiffusionPipeline.from_pretrained(
        DEMO, safety_checker=None, requires_safety_checker=False, local_files_only=True, dtype=torch.bfloat16
    )
    put = Adapters(pipe, models.find(ModelSpec(model="demo")))
    lora = made.saved(made.lora(made.layers(pipe, ("unet", "text_encoder"))), tmp_path / "lora.safetensors")
    word = made.saved(made.embedding(128, 2), tmp_path / "word.safetensors")
    made.controlnet(pipe).save_pretrained(tmp_path / "net")
    made.image_encoder(tmp_path / "image_encoder")
    ip = made.ip_adapter(pipe, tmp_path / "ip.safetensors")
    request = GenerationRequest(
        prompt="", lora=one(lora), embedding=one(word), ip_adapter=one(ip), controlnet=one(tmp_path / "net")
    )
    assert len(put.apply(request)) == 4
    networks = (pipe.unet, pipe.text_encoder, pipe.image_encoder, *put.controlnets(request))
    assert {p.dtype for network in networks for p in network.parameters()} == {torch.bfloat16}


def test_an_ip_adapter_and_sliced_attention_exclude_each_other(sd: Stage, tmp_path: Path) -> None:
    made.image_encoder(tmp_path / "image_encoder")
    ip = made.ip_adapter(sd.pipe, tmp_path / "ip.safetensors")
    usual = dict(sd.pipe.unet.attn_processors)
    sd.pipe.enable_attention_slicing("auto")
    with pytest.raises(UsageError, match="sliced"):
        sd.apply(ip_adapter=one(ip))
    sd.pipe.unet.set_attn_processor(usual)
    assert np.array_equal(sd.draw(), sd.base)


# The front door


@pytest.fixture(scope="module")
def style(tmp_path_factory: pytest.TempPathFactory, sd: Stage) -> Path:
    """A LoRA for the bundled model."""
    layers = made.layers(sd.pipe, ("unet", "text_encoder"))
    return made.saved(made.lora(layers), tmp_path_factory.mktemp("style") / "style.safetensors")


DRAW = ("generate", "a red circle", "-m", "demo", "-s", "3", "--steps", "2")


def test_a_lora_by_flag_by_tag_and_by_record(sdcli: Sdcli, tmp_path: Path, style: Path, configuration: Path) -> None:
    """The same pixels each way; at weight 0 those without; and a record finds it again by its hash, or says what is missing."""

    def drawn(name: str, *more: str, prompt: str | None = None) -> str:
        done = sdcli(*[prompt if prompt and a == DRAW[1] else a for a in DRAW], "-o", name, *more)
        assert done.code == 0, done.stderr
        return str(record_of(tmp_path / name)["pixels"]["sha256"])

    plain = drawn("plain.png")
    flag = drawn("flag.png", "--lora", f"{style}:0.5")
    assert flag != plain == drawn("off.png", "--lora", f"{style}:0")
    record = record_of(tmp_path / "flag.png")
    (told,) = record["model"]["adapters"]
    assert told["name"] == "style.safetensors" and told["sha256"] == models.sha256_of(style)
    assert str(style.parent) not in json.dumps(record) and not record_of(tmp_path / "off.png")["model"]["adapters"]
    missing = sdcli("generate", "--from", "flag.png", "-o", "again.png")
    assert missing.code == 69 and "style.safetensors (SHA-256" in missing.stderr
    folder = configuration / "adapters"
    folder.mkdir(parents=True)
    shutil.copy(style, folder)
    assert sdcli("generate", "--from", "flag.png", "-o", "again.png").code == 0
    assert record_of(tmp_path / "again.png")["pixels"]["sha256"] == flag
    assert drawn("tag.png", prompt="a red circle <lora:style:0.5>") == flag
    assert record_of(tmp_path / "tag.png")["request"]["prompt"] == "a red circle"


@pytest.mark.parametrize(
    ("argv", "code", "word"),
    [
        (("--lora", "./none.safetensors"), 66, "no LoRA at ./none.safetensors"),
        (("--lora", "none"), 69, "no LoRA called none"),
        (("--lora", "style.pt"), 65, "pickle"),
        (("--embedding", "wide.safetensors"), 65, "768 wide, and not 128"),
        (("--lora", "wide.safetensors"), 65, "no key of it fits"),
        (("--lora", "org/none", "--offline"), 69, "offline"),
    ],
)
def test_refusals_come_through_the_door(
    sdcli: Sdcli, tmp_path: Path, argv: tuple[str, ...], code: int, word: str
) -> None:
    zeros(tmp_path / "wide.safetensors", {"emb_params": (2, 768)})
    done = sdcli(*DRAW, "-o", "x.png", *argv)
    assert done.code == code and word in done.stderr
    assert not (tmp_path / "x.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["FluxPipeline", "StableDiffusion3Pipeline", "SanaPipeline", "Lumina2Pipeline"])
def test_loras_of_transformers(tmp_path: Path, name: str) -> None:
    pipe = families.BUILDERS[name]()
    pipe.save_pretrained(tmp_path / "model", safe_serialization=True)
    pipe.set_progress_bar_config(disable=True)
    put = Adapters(pipe, models.find(ModelSpec(model=str(tmp_path / "model"))))
    width, height = families.SIZES[name]

    def draw() -> Any:
        generator = torch.Generator().manual_seed(1)
        return pipe("a red circle", generator=generator, width=width, height=height, **QUIET).images[0]

    base = draw()
    lora = made.saved(made.lora(made.layers(pipe, ("transformer",))), tmp_path / "lora.safetensors")
    put.apply(GenerationRequest(prompt="", lora=one(lora, 0.5)))
    assert not np.array_equal(draw(), base)
    put.apply(GenerationRequest(prompt=""))
    assert np.array_equal(draw(), base)
    for_a_unet = zeros(tmp_path / "unet.safetensors", SHAPES)
    with pytest.raises(SdcliError, match="for a U-Net"):
        put.apply(GenerationRequest(prompt="", lora=one(for_a_unet)))
