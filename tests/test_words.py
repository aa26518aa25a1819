"""What prompts say: A1111's syntax by its published examples, compel's by its own cases, and what is refused."""

from __future__ import annotations

import time

import pytest

from sdcli import models, pipeline
from sdcli.errors import UsageError
from sdcli.models import FAMILIES, ModelSpec
from sdcli.prompts import compel, schedule, syntax, weights
from sdcli.request import GenerationRequest, Hires

# The examples that A1111 publishes in modules/prompt_parser.py, as data.
WEIGHTS = [
    ("normal text", [("normal text", 1.0)]),
    ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
    ("(unbalanced", [("unbalanced", 1.1)]),
    (r"\(literal\]", [("(literal]", 1.0)]),
    ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
    (
        "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
        [
            ("a ", 1.0),
            ("house", 1.5730000000000004),
            (" ", 1.1),
            ("on", 1.0),
            (" a ", 1.1),
            ("hill", 0.55),
            (", sun, ", 1.1),
            ("sky", 1.4641000000000006),
            (".", 1.1),
        ],
    ),
]
A_B = [(step, "a" if step % 2 else "(b:1.1)") for step in range(1, 11)]
SCHEDULES = [
    ("test", [(10, "test")]),
    ("a [b:3]", [(3, "a "), (10, "a b")]),
    ("a [b: 3]", [(3, "a "), (10, "a b")]),
    ("a [[[b]]:2]", [(2, "a "), (10, "a [[b]]")]),
    ("[(a:2):3]", [(3, ""), (10, "(a:2)")]),
    ("a [b : c : 1] d", [(1, "a b  d"), (10, "a  c  d")]),
    ("a[b:[c:d:2]:1]e", [(1, "abe"), (2, "ace"), (10, "ade")]),
    ("a [unbalanced", [(10, "a [unbalanced")]),
    ("a [b:.5] c", [(5, "a  c"), (10, "a b c")]),
    ("a [{b|d{:.5] c", [(5, "a  c"), (10, "a {b|d{ c")]),
    ("((a][:b:c [d:3]", [(3, "((a][:b:c "), (10, "((a][:b:c d")]),
    ("[a|(b:1.1)]", A_B),
    ("[fe|]male", [(step, "female" if step % 2 else "male") for step in range(1, 11)]),
    ("[fe|||]male", [(step, "female" if step % 4 == 1 else "male") for step in range(1, 11)]),
]
LANDSCAPE = (
    "fantasy landscape with a [mountain:lake:0.25] and [an oak:a christmas tree:0.75][ in foreground::0.6]"
    "[ in background:0.25] [shoddy:masterful:0.5]"
)


@pytest.mark.parametrize(("text", "wanted"), WEIGHTS)
def test_weights_as_a1111_publishes_them(text: str, wanted: list[tuple[str, float]]) -> None:
    assert weights(text) == wanted


@pytest.mark.parametrize(("text", "wanted"), SCHEDULES)
def test_schedules_as_a1111_publishes_them(text: str, wanted: list[tuple[int, str]]) -> None:
    assert schedule(text, 10) == wanted


def test_the_landscape_that_a1111_explains_schedules_by() -> None:
    start = "fantasy landscape with a"
    assert schedule(LANDSCAPE, 100) == [
        (25, f"{start} mountain and an oak in foreground shoddy"),
        (50, f"{start} lake and an oak in foreground in background shoddy"),
        (60, f"{start} lake and an oak in foreground in background masterful"),
        (75, f"{start} lake and an oak in background masterful"),
        (100, f"{start} lake and a christmas tree in background masterful"),
    ]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", [("", 1.0)]),
        ("[a]", [("a", 1 / 1.1)]),
        ("(a:-0.5)b", [("a", -0.5), ("b", 1.0)]),
        ("(a: 1.5 )", [("a", 1.5)]),
        ("a:b (c:1.2:3)", [("a:b ", 1.0), ("c:1.2", 3.0)]),
        ("a) b]", [("a) b]", 1.0)]),
        (r"\\(a)", [("\\", 1.0), ("a", 1.1)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        ("a BREAK b", [("a", 1.0), ("BREAK", -1.0), ("b", 1.0)]),
        ("(a BREAK b:1.3)", [("a", 1.3), ("BREAK", -1.0), ("b", 1.3)]),
        ("BREAKFAST BREAK", [("BREAKFAST", 1.0), ("BREAK", -1.0), ("", 1.0)]),
        ("([a)]", [("a", 1.1 * (1 / 1.1))]),
    ],
)
def test_more_weights(text: str, wanted: list[tuple[str, float]]) -> None:
    assert weights(text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("[a::3]b", [(3, "ab"), (10, "b")]),
        ("[a:b:0]", [(10, "b")]),
        ("[a:b:1.0]", [(10, "a")]),
        ("[a:b:99]", [(10, "a")]),
        ("[a:b:1e1]", [(10, "a")]),
        ("[a:b:-1]", [(10, "b")]),
        ("[a:3:4]", [(4, "a"), (10, "3")]),
        ("[a:\n3 ]", [(3, ""), (10, "a")]),
        (r"\[a:3]", [(10, r"\[a:3]")]),
        ("[(a:b):c:3]", [(3, "(a:b)"), (10, "c")]),
        ("a | b [c:3]", [(3, "a | b "), (10, "a | b c")]),
        ("[a|[b:c:.5]]", [(step, "a" if step % 2 else "b" if step < 6 else "c") for step in range(1, 11)]),
        ("[[a:3]", [(3, "["), (10, "[a")]),
        ("[a:b:c:3]", [(10, "[a:b:c:3]")]),
    ],
)
def test_more_schedules(text: str, wanted: list[tuple[int, str]]) -> None:
    assert schedule(text, 10) == wanted


@pytest.mark.parametrize(
    "text", ["(" * 20_000, "[" * 20_000, "[a:" * 6_000 + "b" + ":3]" * 6_000, "(a" * 9_000 + ")" * 9_000]
)
def test_what_nests_without_end_is_read_or_refused_soon(text: str) -> None:
    began = time.monotonic()
    for read in (weights, lambda text: schedule(text, 10)):
        try:
            assert read(text)  # type: ignore[operator]
        except UsageError as error:
            assert "brackets" in error.message or "nested" in error.message
    assert time.monotonic() - began < 5


def test_weights_beyond_numbers_are_refused() -> None:
    with pytest.raises(UsageError, match="more than a number holds"):
        weights("(" * 9 + "a" + f":{'9' * 300})" * 9)


# compel

FRAGMENTS = [
    ("a man picking apricots", [("a man picking apricots", 1)]),
    ("apricots+", [("apricots", 1.1)]),
    ("apricots++", [("apricots", 1.1**2)]),
    ("apricots---", [("apricots", 0.9**3)]),
    ("a man (picking apricots)1.5", [("a man", 1), ("picking apricots", 1.5)]),
    ("(picking (apricots)1.3)1.1", [("picking", 1.1), ("apricots", 1.3 * 1.1)]),
    ("a tall thin man (picking apricots+)++", [("a tall thin man", 1), ("picking", 1.1**2), ("apricots", 1.1**3)]),
    ("(a b)1.3", [("a b", 1.3)]),
    ("-", [("-", 1)]),
    (r"a \(keyword\)", [("a (keyword)", 1)]),
    ("", [("", 1)]),
]


@pytest.mark.parametrize(("prompt", "wanted"), FRAGMENTS)
def test_compels_own_cases(prompt: str, wanted: list[tuple[str, float]]) -> None:
    ((found,),) = compel.read(prompt)
    assert [text for text, _ in found] == [text for text, _ in wanted]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in wanted])


def test_compel_blends_and_joins() -> None:
    (blended,) = compel.read('("blue sphere", "red cube").blend(0.25,0.75)')
    assert blended == ([("blue sphere", 1.0)], [("red cube", 1.0)])
    assert compel.read('("a cat", "oil paint").and()') == (([("a cat", 1.0)],), ([("oil paint", 1.0)],))


@pytest.mark.parametrize(
    ("prompt", "said"),
    [("a cat.swap(dog)", ".swap()"), ("a cat withLora(x, 0.3)", ".withLora()"), ('("a", "b").blend(1)', "read")],
)
def test_what_compel_reads_and_nothing_draws_is_refused(prompt: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        compel.read(prompt)
    assert said in caught.value.message
    assert caught.value.hint


# How it is read


def test_each_family_has_its_way() -> None:
    asked = GenerationRequest(prompt="a")
    for name, family in FAMILIES.items():
        weighed = name in ("StableDiffusionPipeline", "StableDiffusionXLPipeline", "LatentConsistencyModelPipeline")
        assert syntax.how(asked, family) == (syntax.How("a1111", "chunk") if weighed else syntax.How("plain", "cut"))


@pytest.mark.parametrize(
    ("field", "value"), [("prompt_syntax", "a1111"), ("prompt_syntax", "compel"), ("long_prompt", "chunk")]
)
def test_what_a_family_has_no_use_for_is_refused(field: str, value: str) -> None:
    with pytest.raises(UsageError) as caught:
        syntax.how(GenerationRequest(prompt="a", **{field: value}), FAMILIES["FluxPipeline"])
    assert caught.value.field == field


def check(**asked: str) -> None:
    syntax.check(GenerationRequest(**{"prompt": "a", **asked}), models.find(ModelSpec(model="demo")))  # type: ignore[arg-type]


def test_and_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="AND is not drawn") as caught:
        check(prompt="a cat AND a dog:0.5")
    assert caught.value.field == "prompt"
    check(prompt="a cat AND a dog", prompt_syntax="plain")
    check(prompt="SAND and HAND")
    check(prompt="a", negative_prompt="this AND that")


def test_long_prompts_are_refused_where_that_is_asked_for() -> None:
    long = "red " * 75
    check(prompt=long, long_prompt="error")
    check(prompt=f"{long} circle")
    with pytest.raises(UsageError, match='would be cut off: "circle"'):
        check(prompt=f"{long} circle", long_prompt="error")
    with pytest.raises(UsageError, match='would be cut off: "circle"') as caught:
        check(negative_prompt=f"[a|{long} circle]", long_prompt="error")
    assert caught.value.field == "negative_prompt"


def test_only_words_that_a_step_reads_are_too_long() -> None:
    """From a picture the first steps are not drawn, and of one step none comes to what follows it."""
    model = models.find(ModelSpec(model="demo"))
    asked = {
        "prompt": f"[star:{'red ' * 76}:3]",
        "long_prompt": "error",
        "num_inference_steps": 8,
        "init_image": "x.png",
    }
    pipeline.check_prompt(GenerationRequest(**asked, strength=0.2), model)  # type: ignore[arg-type]
    for more in ({"strength": 1.0}, {"strength": 0.2, "hires": Hires(factor=2, strength=0.9)}):
        with pytest.raises(UsageError, match="would be cut off"):
            pipeline.check_prompt(GenerationRequest(**asked, **more), model)  # type: ignore[arg-type]
