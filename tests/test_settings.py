"""Where values come from: names, order and origins."""

from __future__ import annotations

from typing import Any

import pytest

from sdcli.errors import UsageError
from sdcli.models import ModelSpec
from sdcli.request import GenerationRequest, JobOptions
from sdcli.settings import merge, names, preset, presets_folder


def test_the_later_source_wins_and_origins_tell() -> None:
    merged = merge(("a", {"steps": 10, "cfg": 3}), ("b", {"num_inference_steps": 20}), ("c", {"cfg": None}))
    assert merged.values == {"num_inference_steps": 20, "guidance_scale": 3.0}
    assert merged.origins == {"num_inference_steps": "b", "guidance_scale": "a"}


@pytest.mark.parametrize("name", ["num_inference_steps", "num-inference-steps", "steps"])
def test_a_field_goes_by_its_name_and_its_flags(name: str) -> None:
    assert merge(("row", {name: "12"})).values == {"num_inference_steps": 12}


def test_size_is_width_and_height() -> None:
    assert merge(("row", {"size": "640x384"})).values == {"width": 640, "height": 384}
    with pytest.raises(UsageError, match="width is given twice"):
        merge(("row", {"size": "640x384", "width": 64}))
    assert merge(("preset", {"size": "640x384"}), ("flag", {"width": 64})).values == {"width": 64, "height": 384}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"stesp": 3}, "there is no field stesp; did you mean steps"),
        ({"steps": 2.5}, "expected int"),
        ({"steps": True}, "expected int"),
        ({"prompt_": "x"}, "there is no field prompt_"),
        ({"dtype": "fp61"}, "did you mean fp16"),
        ({"vae_tiling": "perhaps"}, "expected bool"),
        ({"tags": "red"}, "tags is a JSON object"),
        ({"negative": "a\udcff"}, "not UTF-8"),
    ],
)
def test_what_does_not_fit_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        merge(("row", values))
    assert said in caught.value.message and caught.value.message.startswith("row: ")


def test_records_are_built_from_what_is_theirs() -> None:
    merged = merge(("flag", {"model": "demo", "steps": "3", "count": "2", "tags": '{"set": "a"}'}))
    assert merged.build(GenerationRequest, prompt="x") == GenerationRequest(prompt="x", num_inference_steps=3)
    assert merged.build(ModelSpec).model == "demo"
    assert merged.build(JobOptions) == JobOptions(count=2, tags={"set": "a"})


def test_every_shipped_preset_is_sound() -> None:
    files = sorted(presets_folder().glob("*.toml"))
    assert [f.stem for f in files] == ["fast", "lowvram", "quality"]
    for file in files:
        assert merge((file.stem, preset(file.stem))).values


def test_an_option_is_declared_once() -> None:
    assert names()["steps"] is names()["num_inference_steps"]
    assert {"seed", "scheduler", "sampler", "cfg", "negative", "model", "device", "output"} <= set(names())
