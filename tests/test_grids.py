"""A grid's axes and cells: what can be written, what it means, and what each mistake is answered."""

from __future__ import annotations

import math
import subprocess
import sys
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sdcli.errors import UsageError
from sdcli.jobs.grids import MOST_CELLS, MOST_VALUES, Axis, Cell, axis, cells
from sdcli.request import GenerationRequest
from sdcli.settings import merge

LIST = "for example steps=10,20,30, cfg=1..9/5 or prompt:cat=cat,dog"
RANGE = "a range is 10..50+10, 50..10-10 or 10..50/5"
FIELDS = sorted({"size", "preset", *GenerationRequest.__struct_fields__} - {"prompt"})
VARY = f"what can vary: prompt:TEXT, {', '.join(FIELDS)}"
STEPS = "steps: Steps from noise to picture."


@pytest.mark.parametrize(
    ("text", "field", "values"),
    [
        ("steps=10,20,30", "num_inference_steps", (10, 20, 30)),
        ("num-inference-steps=10", "num_inference_steps", (10,)),
        (" steps = 10 , 20 ", "num_inference_steps", (10, 20)),
        ('steps="10","20"', "num_inference_steps", (10, 20)),
        ("cfg=3,7.5", "guidance_scale", (3.0, 7.5)),
        ("eta=0,0.5", "eta", (0.0, 0.5)),
        ("seed=-1,9223372036854775807", "seed", (-1, 2**63 - 1)),
        ("sampler=euler,DPM++ 2M Karras", "scheduler", ("euler", "DPM++ 2M Karras")),
        ("size=512x512, 640X384,64×64", "size", ("512x512", "640x384", "64x64")),
        ("width=64,128", "width", (64, 128)),
        ("preset=fast,quality", "preset", ("fast", "quality")),
        ('negative-prompt="blurry, dark",ugly', "negative_prompt", ("blurry, dark", "ugly")),
        ('negative=ugly, "blurry, dark"', "negative_prompt", ("ugly", "blurry, dark")),
        ('negative=,"",12" ruler,"a ""quoted"" word","two\nlines"', "negative_prompt",
         ("", "", '12" ruler', 'a "quoted" word', "two\nlines")),
        ("negative=1..3+1,猫", "negative_prompt", ("1..3+1", "猫")),
        ("prompt:cat=cat, dog,owl", "prompt", ("cat", "dog", "owl")),
        ("prompt: a cat =a=b,c", "prompt", ("a=b", "c")),
        ("prompt:12:30=12:31", "prompt", ("12:31",)),
        ("steps=10..50+10", "num_inference_steps", (10, 20, 30, 40, 50)),
        ("steps=50..10-10", "num_inference_steps", (50, 40, 30, 20, 10)),
        ("steps=1..10+4", "num_inference_steps", (1, 5, 9)),
        ("steps=5..5+1,6..6-1", "num_inference_steps", (5, 6)),
        ("steps=5,10..30+10", "num_inference_steps", (5, 10, 20, 30)),
        ("steps=1..3+1.0", "num_inference_steps", (1, 2, 3)),
        ("cfg=1..9/5", "guidance_scale", (1.0, 3.0, 5.0, 7.0, 9.0)),
        ("cfg=9..1/3", "guidance_scale", (9.0, 5.0, 1.0)),
        ("cfg=0.1..0.5+0.1", "guidance_scale", (0.1, 0.2, 0.3, 0.4, 0.5)),
        ("cfg=.5...9+.2", "guidance_scale", (0.5, 0.7, 0.9)),
        ("eta=1..0-.25", "eta", (1.0, 0.75, 0.5, 0.25, 0.0)),
        ("eta=0..1/4", "eta", (0.0, 0.3333, 0.6667, 1.0)),
        ("cfg=999..999.003/4", "guidance_scale", (999.0, 999.001, 999.002, 999.003)),
        ("seed=1..4/4", "seed", (1, 2, 3, 4)),
        ("seed=-1..1+1", "seed", (-1, 0, 1)),
        ("seed=9223372036854775805..9223372036854775807+1", "seed", (2**63 - 3, 2**63 - 2, 2**63 - 1)),
        ("steps=10..50/4", "num_inference_steps", (10, 23, 37, 50)),
        ("steps=1..4/3", "num_inference_steps", (1, 3, 4)),
    ],
)  # fmt: skip
def test_what_can_be_written(text: str, field: str, values: tuple[Any, ...]) -> None:
    made = axis("x", text)
    assert (made.letter, made.field, made.values) == ("x", field, values)
    assert list(map(type, made.values)) == list(map(type, values))
    assert len(made.labels) == len(values)


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("steps=10,20.0", ("steps 10", "steps 20.0")),
        ("cfg=2.50,3", ("cfg 2.50", "cfg 3")),
        ("cfg=0.1..0.3+0.1", ("cfg 0.1", "cfg 0.2", "cfg 0.3")),
        ("eta=0..1/3", ("eta 0", "eta 0.5", "eta 1")),
        ("steps=100..300+100", ("steps 100", "steps 200", "steps 300")),
        ("size=640X384", ("size 640x384",)),
        ("scheduler=DPM++ 2M Karras", ("scheduler DPM++ 2M Karras",)),
        ("negative-prompt=ugly,", ("negative-prompt ugly", "negative-prompt (empty)")),
        ('prompt:cat=dog,""', ("dog", "(empty)")),
    ],
)
def test_labels_say_what_was_typed(text: str, labels: tuple[str, ...]) -> None:
    assert axis("y", text).labels == labels


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("steps", "--x wants FIELD=VALUES, not 'steps'", LIST),
        ("", "--x wants FIELD=VALUES, not ''", LIST),
        ("steps=", "--x: steps has no values", LIST),
        ("steps= ", "--x: steps has no values", LIST),
        ("=3", "--x: there is no field ''", VARY),
        ("stesp=3", "--x: there is no field stesp; did you mean steps?", VARY),
        ("promt:a=b", "--x: there is no field promt; did you mean prompt, long_prompt, prompt_syntax?", VARY),
        ("sizes=64x64", "--x: there is no field sizes; did you mean size, resize, steps?", VARY),
        ("model=demo", "--x: model is the same for the whole grid", VARY),
        ("vae-tiling=on,off", "--x: vae-tiling is the same for the whole grid", VARY),
        ("count=2", "--x: count is the same for the whole grid", VARY),
        ("output=a/", "--x: output is the same for the whole grid", VARY),
        ("tags={}", "--x: tags is the same for the whole grid", VARY),
        ("prompt=a,b", "--x: prompt wants the text that is replaced", "for example prompt:cat=cat,dog"),
        ("prompt: =a", "--x: prompt wants the text that is replaced", "for example prompt:cat=cat,dog"),
        ("negative:cat=dog", "--x: a text is replaced in the prompt only, not in negative", "write negative=VALUES"),
        ("steps=ten", "--x: steps can't be 'ten': expected int, got str", STEPS),
        ("steps=10,,20", "--x: steps can't be '': expected int, got str", STEPS),
        ("steps=10,0", "--x: steps can't be '0': expected int >= 1", STEPS),
        ("steps=1..3+0.5", "--x: steps can't be '1.5': expected int, got str", STEPS),
        ("steps=1.5..3/9", "--x: steps can't be '1.5': expected int, got str", STEPS),
        ("cfg=nan", "--x: cfg can't be 'nan': expected float >= 0.0",
         "cfg: How closely the prompt is followed; 1: unguided."),
        ("eta=0,null", "--x: eta can't be 'null' in a grid", "give it a value in each cell"),
        ("scheduler=eulr", "--x: unknown scheduler 'eulr'; did you mean euler, euler-a, euler-beta?",
         "`sdcli schedulers` lists them all"),
        ("preset=fats", "--x: there is no preset fats; did you mean fast?", "`sdcli presets list` lists them all"),
        ("preset=fast,lowvram", "--x: preset lowvram sets attention_slicing, vae_tiling, which can't vary in a grid",
         "give it to the whole grid, as in --preset lowvram"),
        ("size=512", "--x: size is WIDTHxHEIGHT, not '512'", "for example 640x384"),
        ("size=512x7", "--x: height can't be '7': expected int >= 8", "height: Pixels down."),
        ("steps=10..50", "--x: steps has no range '10..50'", RANGE),
        ("steps=10..50*2", "--x: steps has no range '10..50*2'", RANGE),
        ("steps=10..50+-10", "--x: steps has no range '10..50+-10'", RANGE),
        ("steps=a..z+1", "--x: steps has no range 'a..z+1'", RANGE),
        ("steps=1..1" + "0" * 20 + "+1", "--x: steps has no range '1..1" + "0" * 20 + "+1'", RANGE),
        ("steps=10..50+0", "--x: the range 10..50+0 never ends", "the step must be more than 0"),
        ("steps=10..50-10", "--x: the range 10..50-10 never ends", "as in 10..50+10"),
        ("steps=50..10+10", "--x: the range 50..10+10 never ends", "as in 50..10-10"),
        ("cfg=1..2/1", "--x: the range 1..2/1 wants a count of 2 or more after /", RANGE),
        ("cfg=1..2/2.5", "--x: the range 1..2/2.5 wants a count of 2 or more after /", RANGE),
        ("cfg=5..5/3", "--x: the range 5..5/3 has two ends that are one", "write cfg=5"),
        ("steps=1..3/5", "--x: the range 1..3/5 has fewer than 5 whole numbers", "there are 3, as in 1..3/3"),
        ("seed=1..1001+1", "--x: seed has 1,001 values", "an axis has 1,000 at most"),
        ("seed=1..99999999999999999999+1", "--x: seed has 99,999,999,999,999,999,999 values",
         "an axis has 1,000 at most"),
        ("eta=0..1/1001", "--x: eta has 1,001 values", "an axis has 1,000 at most"),
        ("seed=1..1000+1,7", "--x: seed has 1,001 values", "an axis has 1,000 at most"),
        ('negative="a', "--x: the values of negative can't be read: a double quote is not closed",
         'as in "blurry, dark",ugly; "" is one quote'),
        ('negative="a"b', "--x: the values of negative can't be read: after a closing double quote there must be a comma",
         'as in "blurry, dark",ugly; "" is one quote'),
        ("negative=a\nb", "--x: the values of negative can't be read: a line break stands outside double quotes",
         'as in "blurry, dark",ugly; "" is one quote'),
        ("prompt:cat=\udcff", "--x is not UTF-8", "check the terminal's or the script's encoding"),
    ],
)  # fmt: skip
def test_what_is_refused(text: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        axis("x", text)
    assert (caught.value.message, caught.value.hint) == (message, hint)


DECIMALS = st.decimals(0, 1000, allow_nan=False, allow_infinity=False, places=3)


@given(first=DECIMALS, step=st.decimals("0.001", 500, places=3), count=st.integers(1, 60), down=st.booleans())
def test_a_range_of_steps_holds_both_ends_and_no_noise(first: Any, step: Any, count: int, down: bool) -> None:
    sign = -1 if down else 1
    last = first + sign * step * (count - 1)
    assume(0 <= last <= 1000)
    made = axis("x", f"cfg={first}..{last}{'-' if down else '+'}{step}")
    exact = [Fraction(first) + sign * i * Fraction(step) for i in range(count)]
    # The number nearest to the exact one, as if it had been typed.
    assert made.values == tuple(float(number) for number in exact)
    assert [Fraction(label.removeprefix("cfg ")) for label in made.labels] == exact


@given(first=st.integers(0, 999), last=st.integers(0, 999), step=st.integers(1, 400))
def test_a_range_of_steps_ends_before_it_passes_the_end(first: int, last: int, step: int) -> None:
    down = last < first
    values = axis("x", f"seed={first}..{last}{'-' if down else '+'}{step}").values
    assert values == tuple(range(first, last + (-1 if down else 1), -step if down else step))


@given(first=DECIMALS, last=DECIMALS, count=st.integers(2, 60))
def test_a_counted_range_is_even_and_holds_both_ends(first: Any, last: Any, count: int) -> None:
    assume(first != last)
    made = axis("x", f"cfg={first}..{last}/{count}")
    assert len(made.values) == len(set(made.values)) == count
    assert (made.values[0], made.values[-1]) == (float(first), float(last))
    distance = (Fraction(last) - Fraction(first)) / (count - 1)
    for i, value in enumerate(made.values):
        assert abs(Fraction(value) - Fraction(first) - i * distance) <= abs(distance) / 1000
    assert [float(label.removeprefix("cfg ")) for label in made.labels] == list(made.values)


@given(first=st.integers(0, 999), last=st.integers(0, 999), count=st.integers(2, 60))
def test_a_counted_range_of_whole_numbers_is_rounded_or_refused(first: int, last: int, count: int) -> None:
    assume(first != last)
    text = f"seed={first}..{last}/{count}"
    if abs(last - first) + 1 < count:
        with pytest.raises(UsageError, match="fewer than"):
            axis("x", text)
        return
    values = axis("x", text).values
    assert len(values) == len(set(values)) == count and (values[0], values[-1]) == (first, last)
    for i, value in enumerate(values):
        assert abs(value - first - Fraction((last - first) * i, count - 1)) <= Fraction(1, 2)


# Cells


def _cells(prompt: str, **axes: str) -> list[Cell]:
    return list(cells(prompt, [axis(letter, text) for letter, text in axes.items()]))


def test_cells_go_through_z_then_y_then_x() -> None:
    made = _cells("a cat", z="cfg=3,7", x="steps=10,20,30", y="scheduler=euler,ddim")
    assert len(made) == 12
    assert [(c.z, c.y, c.x) for c in made] == sorted((c.z, c.y, c.x) for c in made)
    assert made[0].values == {"num_inference_steps": 10, "scheduler": "euler", "guidance_scale": 3.0}
    assert made[-1].values == {"num_inference_steps": 30, "scheduler": "ddim", "guidance_scale": 7.0}
    assert made[1].values["num_inference_steps"] == 20


def test_an_axis_that_is_not_there_has_one_place() -> None:
    assert [(c.x, c.y, c.z) for c in _cells("a", y="steps=1,2")] == [(0, 0, 0), (0, 1, 0)]


def test_cells_are_rows_for_the_merge() -> None:
    (cell,) = _cells("a cat", x="size=640x384", y="cfg=3", z="prompt:cat=dog")
    request = merge(("flag", {"width": 64, "steps": 5}), ("--x", cell.values)).build(GenerationRequest)
    assert request == GenerationRequest(
        prompt="a dog", width=640, height=384, guidance_scale=3.0, num_inference_steps=5
    )
    (cell,) = _cells("a cat", x="preset=fast", y="steps=7")
    assert cell.values == {"preset": "fast", "num_inference_steps": 7}


@pytest.mark.parametrize(
    ("prompt", "axes", "prompts"),
    [
        ("a cat and a cat", {"x": "prompt:cat=dog,owl"}, ["a dog and a dog", "a owl and a owl"]),
        ("a Cat", {"x": "prompt:Cat=cat"}, ["a cat"]),
        ("ab", {"x": "prompt:a=b,a", "y": "prompt:b=a"}, ["ba", "aa"]),
        ("cat catfish", {"x": "prompt:cat=dog", "y": "prompt:catfish=eel"}, ["dog eel"]),
        ("a.c abc", {"x": r"prompt:a.c=\1 \g<0>"}, [r"\1 \g<0> abc"]),
        ("a cat, red", {"x": 'prompt:", red"="",", blue"'}, None),
        ("a cat", {"x": 'prompt:a cat=""'}, [""]),
        ("一只猫", {"x": "prompt:猫=狗"}, ["一只狗"]),
    ],
)
def test_texts_in_the_prompt_are_replaced_at_once(prompt: str, axes: dict[str, str], prompts: list[str] | None) -> None:
    if prompts is None:
        # Quotes are for values: in the text that is searched they are quotes.
        with pytest.raises(UsageError, match="is not in the prompt"):
            _cells(prompt, **axes)
        return
    assert [c.values["prompt"] for c in _cells(prompt, **axes)] == prompts


def test_a_prompt_that_no_axis_touches_is_not_a_value() -> None:
    assert [c.values for c in _cells("a cat", x="steps=3")] == [{"num_inference_steps": 3}]


@pytest.mark.parametrize(
    ("axes", "message", "hint"),
    [
        ({}, "a grid needs an axis", LIST),
        ({"x": "steps=1", "y": "num-inference-steps=2"}, "--x and --y both set num_inference_steps",
         "leave one of them out"),
        ({"x": "height=64", "z": "size=64x64"}, "--x and --z both set height", "leave one of them out"),
        ({"x": "size=64x64", "y": "width=64"}, "--x and --y both set width", "leave one of them out"),
        ({"x": "prompt:cat=dog", "y": "prompt:cat=owl"}, "--x and --y both replace 'cat'", "leave one of them out"),
        ({"x": "prompt:dog=cat"}, "--x: 'dog' is not in the prompt", "name a text that stands in it, letter by letter"),
        ({"x": "prompt:Cat=cat"}, "--x: 'Cat' is not in the prompt", "name a text that stands in it, letter by letter"),
        ({"x": "prompt:cat=dog", "y": "prompt:a cat=b"},
         "--x: 'cat' is in the prompt only where another axis replaces more", "name texts that do not overlap"),
        ({"x": "seed=1..101+1", "y": "steps=1..100+1"}, "the grid has 10,100 cells",
         "10,000 at most: give the axes fewer values"),
    ],
)  # fmt: skip
def test_axes_that_do_not_fit_are_refused_before_the_first_cell(axes: dict[str, str], message: str, hint: str) -> None:
    made = [axis(letter, text) for letter, text in axes.items()]
    with pytest.raises(UsageError) as caught:
        cells("a cat in a garden", made)
    assert (caught.value.message, caught.value.hint) == (message, hint)


def test_a_letter_is_given_once() -> None:
    with pytest.raises(UsageError, match="--x is given twice"):
        cells("a", [axis("x", "steps=1"), axis("x", "cfg=1")])


def test_the_largest_grid() -> None:
    made = cells("a cat", [axis("x", f"seed=1..{MOST_VALUES}+1"), axis("y", "prompt:cat=1,2,3,4,5,6,7,8,9,10")])
    assert sum(1 for _ in made) == MOST_CELLS


@given(
    prompt=st.text("abc ", min_size=1, max_size=20),
    searches=st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=3, unique=True),
)
def test_values_that_are_the_searched_text_change_nothing(prompt: str, searches: list[str]) -> None:
    made = [
        Axis(letter=letter, field="prompt", name="prompt", search=search, values=(search, "X"), labels=("1", "2"))
        for letter, search in zip("xyz", searches, strict=False)
    ]
    try:
        every = list(cells(prompt, made))
    except UsageError as error:
        refused = next(one.search for one in made if error.message.startswith(f"--{one.letter}"))
        if "is not in the prompt" in error.message:
            assert refused not in prompt
            return
        # Wherever it stands, another one begins before it ends.
        assert refused in prompt
        assert any(refused in o or any(o.endswith(refused[:k]) for k in (1, 2)) for o in searches if o != refused)
        return
    assert len(every) == math.prod([2] * len(made)) and every[0].values["prompt"] == prompt
    # With each axis replacing by X, each of them left its mark.
    assert every[-1].values["prompt"].count("X") >= len(made)


def test_grids_are_read_without_torch_and_pillow() -> None:
    code = "from sdcli.jobs import grids, sheet; grids.axis('x', 'steps=1..9/3'); import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert not set(done.stdout.split()) & {"torch", "diffusers", "transformers", "numpy", "PIL"}
