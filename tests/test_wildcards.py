"""Dynamic prompts: what they give, what is refused, and that nothing runs for ever or leaves its folder."""

from __future__ import annotations

import collections
import itertools
import json
import math
import os
import random
import re
import subprocess
import sys
import time
import tracemalloc
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from sdcli.errors import BadInput, InputMissing
from sdcli.prompts import wildcards
from sdcli.prompts.wildcards import Expander, looks_dynamic

pytestmark = pytest.mark.timeout(60)
CALM = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
Files = Mapping[str, str | bytes]

FILES: Files = {
    "animal.txt": "cat\ndog\nowl\n",
    "animals/cats.txt": "tabby\nmanx\n",
    "animals/dogs.txt": "pug\n",
    "scene.txt": "__animal__ in {snow|rain}\na {2$$ with $$__animals/*__}\n",
    "dress.txt": "a ${colour:grey} dress\n",
    "paint.yaml": (
        "artists:\n  dutch: [Vermeer, 3::Rembrandt]\n  finnish:\n    - {text: Schjerfbeck, weight: 2}\n"
        "answers: [no, 12, yes]\none: alone\n"
        "doll:\n  - |\n    # how to use it\n    cute ${figure} toy, # a note\n    soft light\n"
        "ex:\n  prompt: ['${who?=!{man|woman}} a ${who}, that ${who}']\n  boy: ['${who=boy} __ex/prompt__']\n"
    ),
    "more/pets.yml": "pets: [newt]\n",
    "more/birds.json": '{"birds": ["wren", {"content": "rook"}, "0::dodo", "", " ", null], "deep": {"er": ["eel"]}}',
    "flat.json": '["p", "q"]',
}


def put(folder: Path, files: Files) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


@pytest.fixture
def filled(tmp_path: Path) -> Expander:
    return Expander(put(tmp_path / "w", FILES))


def every(expander: Expander, template: str) -> list[str]:
    return list(expander.all(template, 1000))


def refusal(expander: Expander, template: str) -> BadInput:
    """Return what `check` says; whatever else is asked for ends too, and with no other error, and soon."""
    with pytest.raises(BadInput) as caught:
        expander.check(template)
    start = time.monotonic()
    with suppress(BadInput):
        expander.random(template, 1)
    with suppress(BadInput), pytest.MonkeyPatch.context() as patch:
        patch.setattr(wildcards, "PATIENCE", wildcards.PATIENCE // 20)
        collections.deque(expander.all(template, 100), 0)
    assert time.monotonic() - start < 20
    assert "\n" not in caught.value.message and caught.value.hint and "\n" not in caught.value.hint
    return caught.value


# What templates give


@pytest.mark.parametrize(
    ("template", "all_of_them"),
    [
        ("{red|blue} car", ["red car", "blue car"]),
        ("a {red|blue} {car|bus}", ["a red car", "a red bus", "a blue car", "a blue bus"]),
        ("{2$$ and $$a|b|c}", ["a and b", "a and c", "b and a", "b and c", "c and a", "c and b"]),
        ("{1-2$$a|b}", ["a", "b", "a,b", "b,a"]),
        ("{-2$$a|b} {2-$$c|d}", [f"{x} {y}" for x in ("a", "b", "a,b", "b,a") for y in ("c,d", "d,c")]),
        ("{0-1$$a|b}c", ["c", "ac", "bc"]),
        ("{2$$ % $$a|b} 50%", ["a % b 50%", "b % a 50%"]),
        ("{2$$ | $$a|b}", ["a | b", "b | a"]),
        ("{5$$a|b}", ["a,b", "b,a"]),
        ("{2$$a|a}", ["a,a"]),
        ("{2$$, $$a||b}", ["a", "a, b", "b", "b, a"]),
        ("{3::a|b}", ["a", "b"]),
        ("{0::a|b}", ["b"]),
        ("{a|{b|c} d}", ["a", "b d", "c d"]),
        ("{ a | b }", ["a", "b"]),
        ("{a|a|{a}}", ["a"]),
        ("{|very }old", ["old", "very old"]),
        ("{{{a|b}}}", ["a", "b"]),
        ("a(b:1.2) [c|d] {e|f}", ["a(b:1.2) [c|d] e", "a(b:1.2) [c|d] f"]),
        ("__animal__", ["cat", "dog", "owl"]),
        ("__ animal __!", ["cat!", "dog!", "owl!"]),
        ("__animals/cats__", ["tabby", "manx"]),
        (r"__\animals\\cats/__", ["tabby", "manx"]),
        ("__animals/*__", ["tabby", "manx", "pug"]),
        ("__animals/?ogs__", ["pug"]),
        ("__cats__", ["tabby", "manx"]),
        ("{2$$ & $$__animals/*__}", [f"{a} & {b}" for a, b in itertools.permutations(("tabby", "manx", "pug"), 2)]),
        ("{9$$__animals/cats__ }", ["tabby,manx", "manx,tabby"]),
        ("__animals/{cats|dogs}__", ["tabby", "manx", "pug"]),
        ("{1$$__animals/{cats|dogs}__}", ["tabby", "manx", "pug"]),
        ("__artists/*__", ["Vermeer", "Rembrandt", "Schjerfbeck"]),
        ("__answers__", ["no", "12", "yes"]),
        ("__one__", ["alone"]),
        ("__more/pets__", ["newt"]),
        ("__birds__ __more/deep/er__", ["wren eel", "rook eel"]),
        ("__flat__", ["p", "q"]),
        ("${a=red}${a} ${a}", ["red red"]),
        ("${a={x|y}}${a}${a}", ["xx", "xy", "yx", "yy"]),
        ("${a=!{x|y}}${a}${a}", ["xx", "yy"]),
        ("${a}${a = {x|y} z}", ["x z", "y z"]),
        ("${a:else}", ["else"]),
        ("${a=1}${a?=2}${a}", ["1"]),
        ("${a={p|q}}${a=!${a} too}${a}, ${a}", ["p too, p too", "q too, q too"]),
        ("${k=!{cats|dogs}}__animals/${k}__ of the ${k}", ["tabby of the cats", "manx of the cats", "pug of the dogs"]),
        ("${a=1}", [""]),
        ("${who=__ex/boy__}${who}", ["a boy, that boy"]),
        ("__dress__", ["a grey dress"]),
        ("__dress(colour=red)__", ["a red dress"]),
        ("__dress(colour={red|blue})__", ["a red dress", "a blue dress"]),
        ("${colour={red|blue}}__dress(colour=${colour})__", ["a red dress", "a blue dress"]),
        ("{2$$__dress(colour=red)__}", ["a red dress"]),
        ("__doll(figure=owl)__", ["cute owl toy, soft light"]),
        ("__ex/prompt__", ["a man, that man", "a woman, that woman"]),
        ("__ex/boy__", ["a boy, that boy"]),
        ("%{a photo ... at dusk$$of {a cat|an owl}}", ["a photo of a cat at dusk", "a photo of an owl at dusk"]),
        ("%{old $$cat}", ["old cat"]),
        ("100% {wool|silk} for 5$", ["100% wool for 5$", "100% silk for 5$"]),
        ("{100%|5$ in gold|a}", ["100%", "5$ in gold", "a"]),
        ("a cat # and a note", ["a cat"]),
        ("{a|b} // a note", ["a", "b"]),
        ("{a|b}/* a note */ c", ["a c", "b c"]),
        ("see http://x.y {a|b}", ["see http://x.y a", "see http://x.y b"]),
        ("日本 {猫|犬}\t\n x\x1b\x85\u2028y", ["日本 猫 x y", "日本 犬 x y"]),
    ],
)
def test_what_templates_give(filled: Expander, template: str, all_of_them: list[str]) -> None:
    filled.check(template)
    assert every(filled, template) == all_of_them
    # The rarest comes in every eighth draw, and all of them in 300.
    assert {filled.random(template, seed) for seed in range(300)} == set(all_of_them)


def test_wildcards_inside_wildcards(filled: Expander) -> None:
    filled.check("__scene__")
    scenes = [f"{a} in {w}" for a in ("cat", "dog", "owl") for w in ("snow", "rain")]
    assert every(filled, "__scene__")[:6] == scenes and "a pug with manx" in every(filled, "__scene__")
    assert len(every(filled, "__scene__")) == 12


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="{$#_")), st.integers(0, 2**63))
@CALM
def test_text_without_marks_is_unchanged(text: str, seed: int) -> None:
    expander = Expander(None)
    expander.check(text)
    assert expander.random(text, seed) == text and every(expander, text) == [text]


def test_underscores_are_text_alone() -> None:
    for text in ("snake_case", "_", "a_ _b", "100% // /* 5} | :: ~"):
        assert Expander(None).random(text, 1) == text


# A template of the library's, whose words are numbered in the end so that all are different.
_WORD = st.just("~W")
_PLAIN = st.one_of(_WORD, st.sampled_from(["__w1__", "__sub/w2__", "__sub/*__", "${v}", "${u:~W}"]))


def _choice(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    option = st.tuples(st.sampled_from(["", "", "2::", "0.5::"]), inner).map("".join)
    several = st.tuples(
        st.sampled_from(["2$$", "1-2$$", "-2$$", "2-$$", "2$$ and $$", "0-1$$"]),
        st.lists(_WORD, min_size=2, max_size=3).map("|".join),
    ).map("".join)
    return st.one_of(st.lists(option, min_size=2, max_size=3).map("|".join), several).map(lambda text: f"{{{text}}}")


_TEMPLATES = st.recursive(
    _PLAIN, lambda inner: st.one_of(_choice(inner), st.lists(inner, min_size=1, max_size=3).map(" ".join)), max_leaves=7
)


def _library(folder: Path, template: str, seed: int | None) -> list[str]:
    """Return what the library's own samplers give: all, or the draw of a seed."""
    from dynamicprompts.enums import SamplingMethod
    from dynamicprompts.sampling_context import SamplingContext
    from dynamicprompts.wildcards import WildcardManager

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        method = SamplingMethod.COMBINATORIAL if seed is None else SamplingMethod.RANDOM
        context = SamplingContext(method, WildcardManager(folder), ignore_whitespace=True, rand=random.Random(seed))
        return [str(text) for text in context.sample_prompts(template, 400 if seed is None else 1)]


@given(_TEMPLATES, st.integers(0, 2**32))
@settings(CALM, max_examples=40)
def test_the_library_gives_the_same(tmp_path_factory: pytest.TempPathFactory, template: str, seed: int) -> None:
    numbers = itertools.count()
    template = "${v=~W} " + template
    template = re.sub("~W", lambda match: f"w{next(numbers)}", template)
    folder = tmp_path_factory.getbasetemp() / "library"
    put(folder, {"w1.txt": "red\n{blue|green} x\n", "sub/w2.txt": "sea\n", "sub/w3.txt": "sky __w1__\n"})
    theirs = _library(folder, template, None)
    assume(len(theirs) < 400)
    expander = Expander(folder)
    expander.check(template)
    assert set(every(expander, template)) == set(theirs)
    assert len(every(expander, template)) == len(set(theirs))
    assert set(_library(folder, template, seed)) <= set(theirs)
    assert expander.random(template, seed) in theirs


# Draws

# By degrees of freedom, what right draws exceed once in 20 and once in 10,000; these seeds are always the same.
CHI_SQUARED = {1: (3.84, 15.14), 2: (5.99, 18.42), 3: (7.81, 21.11), 4: (9.49, 23.51), 5: (11.07, 25.74)}


def _chi_squared(drawn: list[str], expected: Mapping[str, float]) -> float:
    counts = collections.Counter(drawn)
    assert set(counts) <= set(expected)
    return sum((counts[k] - len(drawn) * p) ** 2 / (len(drawn) * p) for k, p in expected.items())


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{3::a|b}", {"a": 3 / 4, "b": 1 / 4}),
        ("{a|b|c|d|e}", dict.fromkeys("abcde", 1 / 5)),
        ("{a|a|b}", {"a": 2 / 3, "b": 1 / 3}),
        ("__animal__", dict.fromkeys(("cat", "dog", "owl"), 1 / 3)),
        ("__artists/*__", {"Vermeer": 1 / 6, "Rembrandt": 3 / 6, "Schjerfbeck": 2 / 6}),
        ("{1-2$$a|b}", {"a": 1 / 4, "b": 1 / 4, "a,b": 1 / 4, "b,a": 1 / 4}),
        ("{2$$a|b|c}", {f"{a},{b}": 1 / 6 for a, b in itertools.permutations("abc", 2)}),
        # Without replacement: the second is drawn by weight among those left.
        ("{2$$1::a|3::b|1::c}", {"a,b": 0.15, "a,c": 0.05, "b,a": 0.3, "b,c": 0.3, "c,a": 0.05, "c,b": 0.15}),
        ("{2$$1::a|0::b|1::c}", {"a,c": 1 / 2, "c,a": 1 / 2}),
        ("{1$$__artists/*__}", {"Vermeer": 1 / 6, "Rembrandt": 3 / 6, "Schjerfbeck": 2 / 6}),
    ],
)
def test_draws_follow_the_weights(filled: Expander, template: str, expected: dict[str, float]) -> None:
    drawn = [filled.random(template, seed) for seed in range(1000)]
    suspicious, impossible = CHI_SQUARED[len(expected) - 1]
    assert _chi_squared(drawn, expected) < impossible
    # The test would see if one of them came a little too often.
    assert _chi_squared([*drawn, *[next(iter(expected))] * 84], expected) > suspicious


def test_neighbouring_seeds_and_parts_are_independent(filled: Expander) -> None:
    drawn = [filled.random("{a|b|c|d} {a|b|c|d}", seed) for seed in range(1600)]
    assert _chi_squared(drawn, {f"{a} {b}": 1 / 16 for a in "abcd" for b in "abcd"}) < 45
    pairs = [a[0] + b[0] for a, b in zip(drawn[::2], drawn[1::2], strict=True)]
    assert _chi_squared(pairs, {a + b: 1 / 16 for a in "abcd" for b in "abcd"}) < 45


DRAWS = (
    "import sys, json, random; from pathlib import Path; from sdcli.prompts.wildcards import Expander\n"
    "random.seed(int(sys.argv[2])); e = Expander(Path(sys.argv[1]))\n"
    "seeds = [int(s) for s in sys.argv[3].split(',')]\n"
    "print(json.dumps([[e.random(t, s) for s in seeds] + list(e.all(t, 20)) for t in sys.argv[4:]]))"
)


def test_draws_are_the_same_in_any_process_and_order(tmp_path: Path) -> None:
    put(tmp_path / "w", FILES)
    templates = [
        "__scene__, {2$$ and $$__animal__|__artists/*__|x} ${a=!{p|q}}${a}",
        "{0.3::a|b|{c|d}} __animals/*__",
    ]
    seeds = [0, 1, 7, 2**32 - 1, 2**63 - 1]

    def run(hash_seed: str, order: list[int]) -> list[list[str]]:
        argv = [sys.executable, "-c", DRAWS, str(tmp_path / "w"), hash_seed, ",".join(map(str, order)), *templates]
        env = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(argv, capture_output=True, text=True, env=env, timeout=60, check=True)
        assert done.stderr == ""
        loaded: list[list[str]] = json.loads(done.stdout)
        return loaded

    one, other = run("1", seeds), run("4242", seeds[::-1])
    here = Expander(tmp_path / "w")
    for mine, theirs, template in zip(one, other, templates, strict=True):
        assert mine[:5] == theirs[:5][::-1] == [here.random(template, seed) for seed in seeds]
        assert mine[5:] == theirs[5:] == list(here.all(template, 20))
        assert len(set(mine[:5])) > 1
    # These never change, so that what was once drawn can be drawn again.
    assert [here.random("{a|b|c|d|e|f|g|h}{2$$__animal__}", seed) for seed in (1, 2, 3)] == KEPT


KEPT = ["bowl,dog", "hdog,owl", "bdog,cat"]


def test_the_global_random_state_is_left_alone(filled: Expander) -> None:
    random.seed(5)
    state = random.getstate()
    drawn = filled.random("__scene__ {2$$a|b|c}", 9)
    assert every(filled, "__scene__") and random.getstate() == state
    random.seed(6)
    assert filled.random("__scene__ {2$$a|b|c}", 9) == drawn


def test_files_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = collections.Counter[str]()
    real = Path.read_bytes

    def counting(self: Path) -> bytes:
        read[self.name] += 1
        return real(self)

    monkeypatch.setattr(Path, "read_bytes", counting)
    expander = Expander(put(tmp_path, {**FILES, "bad.txt": b"\xff", "unused.txt": "x\n"}))
    assert not read
    for seed in range(30):
        expander.check("__scene__ __artists/dutch__")
        expander.random("__animal__ __artists/dutch__", seed)
        every(expander, "__animal__ {2$$__animals/cats__}")
        for template in ("__bad__", "__nothing__"):
            with pytest.raises(BadInput):
                expander.check(template)
    # A glob's values are its own, so that a file of its may be read once more.
    assert read["animals.txt"] <= 1 and set(read.values()) <= {1, 2} and "unused.txt" not in read
    assert read["animal.txt"] == read["paint.yaml"] == read["bad.txt"] == 1


# What is refused


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{red|blue", "can't be read from character 1 on, '{red|blue'"),
        ("a {b|c} {d", "can't be read from character 9 on"),
        ("{a|b#c}", "# starts a note"),
        ("{$$a|b}", "can't be read"),
        ("{2$$$$a|b}", "can't be read"),
        ("snake__case {a|b}", "'__case {a|b}': a __ has no other"),
        ("____", "a __ has no other"),
        ("{9" + "9" * 5000 + "$$a|b}", "can't be read"),
        ("{~a|b}", "the mark ~"),
        ("{x|{!a|b}}", "the mark !"),
        ("{@2$$__animal__}", "the mark @"),
        ("__~animal__", "the mark ~"),
        ("{0::a|0::b}", "all weights of a {...} are 0"),
        ("{" + "9" * 20 + "::a|b}", "a weight is larger"),
        ("${x}", "the variable x is not set"),
        ("{a|{b|${x}}}", "the variable x is not set"),
        ("${a=${a}}${a}", "the variable a contains itself"),
        ("${a=x ${b}}${b=${a}}{${b}|c}", "contains itself"),
        ("${colour=__dress__}__dress__", "w/dress.txt:1: wildcards contain each other: dress -> dress"),
        ("__nothing__", "there is no wildcard 'nothing'"),
        ("{a|__anmal__}", "did you mean animal"),
        ("${x=__nothing__}${x}", "there is no wildcard 'nothing'"),
        ("__animals/{cats|eels}__", "there is no wildcard 'animals/eels'"),
        ("${k=!{cats|eels}}__animals/${k}__", "there is no wildcard 'animals/eels'"),
        ("__Animal__", "there is no wildcard 'Animal'"),
        ("__a\x1b[31m__", r"there is no wildcard 'a\x1b[31m'"),
        ("__[__", "there is no wildcard '['"),
        ("__{0$$a}__", "there is no wildcard ''"),
        ("{" * 17 + "a" + "}" * 17, "braces are nested more than 16 deep"),
        ("{" * 19_999, "braces are nested more than 16 deep"),
        ("{a|b}" * 5000, "more than 20,000 characters"),
        ("${a=!" + "{x|y}" * 12 + "}__${a}__", "there is no wildcard 'xxxxxxxxxxxx'"),
        ("".join(f"${{v{i}=${{v{i + 1}}}${{v{i + 1}}}}}" for i in range(40)) + "${v40=x}${v0}", "grows beyond"),
        ("".join(f"${{v{i}=${{v{i + 1}}}${{v{i + 1}}}}}" for i in range(40)) + "${v40=}${v0}", "grows beyond"),
        ("".join(f"${{v{i}=${{v{i + 1}}}}}" for i in range(90)) + "${v90=x}${v0}", "nested more than 64 deep"),
    ],
)
def test_templates_that_are_refused(filled: Expander, template: str, reason: str) -> None:
    assert reason in refusal(filled, template).message


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"a.txt": "x\n\n__nothing__\n"}, "w/a.txt:3: there is no wildcard 'nothing'"),
        ({"a.txt": "__b__\n", "b.txt": "# c\nx\n__nothing__\n"}, "w/b.txt:3: there is no wildcard 'nothing'"),
        ({"a.txt": ""}, "w/a.txt: the wildcard 'a' has no values"),
        ({"a.txt": "# one\n\n  # two\n"}, "has no values"),
        ({"a.txt": "x\n__b__\n", "b.txt": " \n"}, "w/b.txt: the wildcard 'b' has no values"),
        ({"a.yaml": "a:\n"}, "w/a.yaml: a: the wildcard 'a' has no values"),
        ({"a.json": '{"a": ["0::x"]}'}, "has no values"),
        ({"a.txt": "__a__\n"}, "w/a.txt:1: wildcards contain each other: a -> a"),
        ({"a.txt": "y\nx __b__\n", "b.txt": "y\n__a__\n"}, "w/b.txt:2: wildcards contain each other: a -> b -> a"),
        ({"a.txt": "{x|__b__}\n", "b.txt": "__*__\n"}, "contain each other"),
        ({"a.txt": "__${k:b}__\n", "b.txt": "__a(k=b)__\n"}, "contain each other: a -> b -> a"),
        ({"a.txt": "fine\n{red|blue\n"}, "w/a.txt:2: can't be read from character 1 on, '{red|blue'"),
        ({"a.txt": "{~x|y}\n"}, "w/a.txt:1: the mark ~"),
        ({"a.txt": "fine\n${x}\n"}, "w/a.txt:2: the variable x is not set"),
        ({"a.txt": b"x\ny\ncaf\xe9\n"}, "w/a.txt:3: is not UTF-8"),
        ({"a.txt": b"\xff\xfex\x00\n\x00"}, "w/a.txt:1: is not UTF-8"),
        ({"a.txt": b"x\r\n\xe9"}, "w/a.txt:2: is not UTF-8"),
        ({"a.txt": b"x\ny\x00\n"}, "w/a.txt:2: has a NUL"),
        ({"a.yaml": "a: [x\nb: ]"}, "w/a.yaml:2: "),
        ({"a.yaml": b"a:\n- \xe9\n"}, "w/a.yaml:2: is not UTF-8"),
        ({"a.yaml": "a: [x\x07]"}, "w/a.yaml:1: "),
        ({"a.yaml": "a: &a\n  b: *a\n"}, "w/a.yaml:1: found unconstructable recursive node"),
        ({"a.yaml": "a: [x, [y]]\n"}, "w/a.yaml: a: item 2 is no text"),
        ({"a.yaml": "a: " + "[" * 300_000}, "w/a.yaml: is nested too deeply"),
        ({"a.json": '{"a":' * 70 + "[]" + "}" * 70}, "w/a.json: is nested too deeply"),
        ({"a.json": '{"a": [\n"x",]}'}, "w/a.json:2: "),
        ({"a.json": '{"a": ["x", ["y"]]}'}, "w/a.json: a: item 2 is no text"),
        ({"a.json": '{"a": ["x", true]}'}, "item 2 is no text"),
        ({"a.json": '{"a": [{"text": "x", "weight": -1}]}'}, "item 1 is no text"),
        ({"a.json": '{"a": [{"text": "x", "weight": NaN}]}'}, "item 1 is no text"),
        ({"a.json": '{"a": [{"text": "x", "weight": 1e999}]}'}, "item 1 is no text"),
        ({"a.json": '{"a": [{"txt": "x"}]}'}, "item 1 is no text"),
        ({"a.json": '{"a": ["\\ud800"]}'}, "item 1 has half of a character"),
        ({"a.json": '{"a": ["x", "{y"]}'}, "w/a.json: a: item 2: can't be read"),
        ({"a.json": "[" * 100_000}, "nested too deeply"),
        ({"a.txt": "word " * 30_000}, "w/a.txt:1: it grows beyond 50,000 characters"),
        ({"a.txt": "{" * 20 + "\n"}, "w/a.txt:1: braces"),
        ({f"a{i or ''}.txt": f"__a{i + 1}__ __a{i + 1}__\n" for i in range(30)} | {"a30.txt": "x\n"}, "grows beyond"),
        ({f"a{i or ''}.txt": f"__a{i + 1}__\n" for i in range(300)} | {"a300.txt": "x\n"}, "nested more than 64 deep"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: Files, reason: str) -> None:
    put(tmp_path / "w", files)
    monkeypatch.chdir(tmp_path)
    expander = Expander(Path("w"))
    assert reason in refusal(expander, "{x|the __a__}").message
    # The same again, out of what was kept.
    assert reason in refusal(expander, "{x|the __a__}").message


def test_what_is_just_not_too_deep_can_be_drawn(tmp_path: Path) -> None:
    chain = {f"a{i}.txt": f"{{x __a{i + 1}__|y}}\n" for i in range(20)} | {"a20.txt": "z\n"}
    expander = Expander(put(tmp_path, chain))
    expander.check("__a0__")
    assert len(every(expander, "__a0__")) == 21 and "x x" in "".join(expander.random("__a0__", s) for s in range(20))
    put(tmp_path, {"b.txt": "{x|{x|{x|{x|__a0__}}}}\n"})
    assert "nested more than" in refusal(Expander(tmp_path), "__b__").message


def test_a_wildcard_without_a_folder() -> None:
    found = refusal(Expander(None), "{x|__animal__}")
    assert "there is no wildcard 'animal'" in found.message and "--wildcards" in str(found.hint)


def test_what_is_no_folder(tmp_path: Path) -> None:
    put(tmp_path, {"file": "x"})
    with pytest.raises(InputMissing, match="gone") as missing:
        Expander(tmp_path / "gone")
    with pytest.raises(BadInput, match="file is no folder") as none:
        Expander(tmp_path / "file")
    assert (missing.value.exit_code, none.value.exit_code) == (66, 65)


def test_what_is_set_elsewhere_does_not_hide_what_is_missing(tmp_path: Path) -> None:
    put(tmp_path, {"a.txt": "${x?=!__nothing__} y\n", "b.txt": "${x} z\n"})
    expander = Expander(tmp_path)
    expander.check("${x=1} __a__ __b__")
    assert "a.txt:1: there is no wildcard" in refusal(expander, "__a__").message
    assert "b.txt:1: the variable x" in refusal(expander, "__b__").message


_SOUP = st.lists(
    st.sampled_from(
        [*"{}|$#%_~!@()=:?.-2,a /\n", "__", "$$", "${", "%{", "{2$$", "::", "__w__", "__v__", "${a", "...", "//"]
    ),
    max_size=24,
).map("".join)


@given(_SOUP, st.integers(0, 99))
@settings(CALM, max_examples=150)
def test_whatever_is_not_refused_can_be_drawn(
    tmp_path_factory: pytest.TempPathFactory, template: str, seed: int
) -> None:
    folder = tmp_path_factory.getbasetemp() / "soup"
    put(folder, {"w.txt": "one\n{two|three} __v__\n", "v.txt": "four ${a:five}\n"})
    expander = Expander(folder)
    looks_dynamic(template)
    try:
        expander.check(template)
    except BadInput as error:
        assert "\n" not in error.message and error.hint
        return
    drawn = expander.random(template, seed)
    several = list(expander.all(template, 200))
    assert several and len(set(several)) == len(several)
    assert len(several) == 200 or drawn in several


# Bounds

EXPLOSION = " ".join(["{a|b|c|d|e|f|g|h}"] * 12)


def test_an_explosion_starts_at_once_and_stops_at_its_limit() -> None:
    expander = Expander(None)
    expander.check(EXPLOSION)
    start = time.monotonic()
    assert next(expander.all(EXPLOSION, None)) == "a a a a a a a a a a a a"
    assert list(expander.all(EXPLOSION, 3))[1:] == ["a a a a a a a a a a a b", "a a a a a a a a a a a c"]
    assert time.monotonic() - start < 5
    assert list(expander.all(EXPLOSION, 0)) == list(expander.all("plain", 0)) == []
    with pytest.MonkeyPatch.context() as patch:
        # It is patient anew for each.
        patch.setattr(wildcards, "PATIENCE", 1000)
        assert len(set(expander.all(EXPLOSION, 1500))) == 1500


def test_memory_stays_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wildcards, "REMEMBERED", 1000)
    for template in (EXPLOSION, "{3$$" + "|".join(f"{{a|b}}{i}" for i in range(30)) + "}"):
        expander = Expander(None)
        found = expander.all(template, None)
        collections.deque(itertools.islice(found, 1200), 0)
        tracemalloc.start()
        try:
            collections.deque(itertools.islice(found, 4000), 0)
            assert tracemalloc.get_traced_memory()[1] < 300_000
        finally:
            tracemalloc.stop()


def test_prompts_that_are_alike_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 to the 40 combinations make 41 prompts."""
    monkeypatch.setattr(wildcards, "PATIENCE", 20_000)
    found = Expander(None).all("{|a}" * 40, None)
    # There are more, but an end would say that there are not.
    assert list(itertools.islice(found, 10)) == ["a" * i for i in range(10)]
    with pytest.raises(BadInput, match="without a prompt that is new"):
        collections.deque(found, 0)
    # Inside a part as well, and where all of a part's are alike.
    with pytest.raises(BadInput, match="without a prompt that is new"):
        collections.deque(Expander(None).all("{x {" + "{|a}" * 40 + "|b}|c}", None), 0)
    assert every(Expander(None), "{a|{a}|{{a}}}" * 12) == ["a" * 12]


def test_many_values_are_quick(tmp_path: Path) -> None:
    put(tmp_path, {"many.txt": "".join(f"value {i}\n" for i in range(20_000)), "use.txt": "a __many__\n" * 3})
    expander = Expander(tmp_path)
    start = time.monotonic()
    for seed in range(300):
        expander.check(f"{{x|y}} __many__ {seed % 3}")
        expander.random("__use__ {x|y} __many__", seed)
    assert expander.random("{3$$__many__}", 1).count(",") == 2
    assert len(list(expander.all("{2$$__many__}", 50))) == 50
    assert time.monotonic() - start < 20


def test_a_folder_with_too_much_in_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, {f"{i}.png": "" for i in range(12)} | {"a.txt": "x\n"})
    assert every(Expander(tmp_path), "__a__") == ["x"]
    monkeypatch.setattr(wildcards, "MOST", 10)
    assert "has more than 10 files" in refusal(Expander(tmp_path), "__a__").message
    assert "has more than 10 files" in refusal(Expander(tmp_path), "__b__").message
    # An anchor ten times in each of nine: a thousand million lists out of one small file.
    bomb = "a0: &a0 {x: [y]}\n" + "".join(
        f"a{i}: &a{i} {{{', '.join(f'k{k}: *a{i - 1}' for k in range(10))}}}\n" for i in range(1, 10)
    )
    monkeypatch.setattr(wildcards, "MOST", 1000)
    assert "has more than 1,000" in refusal(Expander(put(tmp_path / "b", {"bomb.yaml": bomb})), "__x__").message
    monkeypatch.setattr(wildcards, "BIGGEST", 10)
    assert "big.txt: has more than" in refusal(Expander(put(tmp_path / "c", {"big.txt": "x" * 99})), "__big__").message


# Files


def test_what_text_files_may_have(tmp_path: Path) -> None:
    files: Files = {
        "bom.txt": "\ufeffcat\ndog\n",
        "bom.json": "\ufeff" + '{"j": ["x"]}',
        "bom.yaml": "\ufeffy: [z]\n",
        "ends.txt": b"a\r\nb\rc\n\n  d  ",
        "control.txt": "a\tb\x1b[31mc\x07\nx\u2028y\u0085z\n",
        "twice.txt": "a\nb\na\n",
        "upper.TXT": "up\n",
        "कुत्ता.txt": "श्वान\n",
        "cafe\u0301.txt": "closed\n",
        "a[1].txt": "brackets\n",
        ".hidden.txt": "x\n",
        ".git/config.txt": "x\n",
        "notes.md": "x\n",
        "weights.txt": "3::cat\n",
    }
    expander = Expander(put(tmp_path, files))
    expected = {
        "bom": ["cat", "dog"], "j": ["x"], "y": ["z"], "ends": ["a", "b", "c", "d"], "twice": ["a", "b"], "upper": ["up"],
        "control": ["a b [31mc", "x y z"], "कुत्ता": ["श्वान"], "caf\u00e9": ["closed"], "cafe\u0301": ["closed"],
        "a[1]": ["brackets"],
        # As the library has it: weights are for lists.
        "weights": ["3::cat"],
    }  # fmt: skip
    assert {name: every(expander, f"__{name}__") for name in expected} == expected
    for name in (".hidden", "hidden", ".git/config", "config", "notes"):
        assert "there is no wildcard" in refusal(expander, f"__{name}__").message


def test_the_order_is_that_of_the_names(tmp_path: Path) -> None:
    files = {f"{c}.json": f'{{"z{c}": ["z{c}"], "same": ["{c}"], "a{c}": ["a{c}"]}}' for c in "hcagbfed"}
    expander = Expander(put(tmp_path, files))
    assert every(expander, "__same__") == list("abcdefgh")
    names = sorted([*(f"a{c}" for c in "abcdefgh"), *(f"z{c}" for c in "abcdefgh")])
    assert every(expander, "__[az]?__") == names


def test_names_never_leave_the_folder(tmp_path: Path) -> None:
    put(tmp_path, {"secret.txt": "secret\n", "w/sub/a.txt": "a\n"})
    expander = Expander(tmp_path / "w")
    secret = tmp_path / "secret"
    for name in (
        "../secret",
        "sub/../../secret",
        str(secret),
        f"{secret}.txt",
        "..\\secret",
        "*/../secret",
        "../*",
        "%2e./secret",
    ):
        assert "there is no wildcard" in refusal(expander, f"__{name}__").message
    assert every(Expander(tmp_path / "w" / ".." / "w"), "__sub/a__") == ["a"]


def test_links_never_leave_the_folder(tmp_path: Path) -> None:
    put(tmp_path, {"secret.txt": "secret\n", "out/far.txt": "far\n", "w/a.txt": "a\n", "w/sub/b.txt": "b\n"})
    w = tmp_path / "w"
    (w / "evil.txt").symlink_to(tmp_path / "secret.txt")
    (w / "relative.txt").symlink_to("../secret.txt")
    (w / "folder").symlink_to(tmp_path / "out")
    (w / "round").symlink_to(w)
    (w / "inside.txt").symlink_to("sub/b.txt")
    (w / "gone.txt").symlink_to("nowhere.txt")
    (w / "pack.yaml").symlink_to(tmp_path / "out.yaml")
    put(tmp_path, {"out.yaml": "packed: [x]\n"})
    expander = Expander(w)
    assert every(expander, "__inside__ __a__ __sub/*__") == ["b a b"]
    for name in ("evil", "relative", "*", "folder/*", "e*"):
        assert "is a link" in refusal(expander, f"__{name}__").message
    for name in ("folder/far", "round/a", "packed"):
        assert "links are not followed" in refusal(expander, f"__{name}__").message
    assert "gone.txt: is no regular file" in refusal(expander, "__gone__").message
    # The folder itself may be one.
    (tmp_path / "link").symlink_to(w)
    assert every(Expander(tmp_path / "link"), "__a__") == ["a"]


def test_what_is_no_file_never_hangs(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "folder.txt").mkdir()
    put(tmp_path, {"a.txt": "a\n"})
    expander = Expander(tmp_path)
    assert "pipe.txt: is no regular file" in refusal(expander, "__pipe__").message
    assert "there is no wildcard" in refusal(expander, "__folder__").message
    assert every(expander, "__a__") == ["a"]


def test_names_that_are_no_unicode(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_bytes(b"\xff")
    assert "caf\ufffd.txt:1: is not UTF-8" in refusal(Expander(tmp_path), "__caf*__").message


# The rest


@pytest.mark.parametrize(
    ("prompt", "dynamic"),
    [
        ("{red|blue} car", True),
        ("a {b|{c|d}}", True),
        ("{2$$a|b}", True),
        ("{2$$ and $$__a__}", True),
        ("{1-3$$x}", True),
        ("__animal__", True),
        ("a __animals/cats__, b", True),
        ("(__colour*__:1.2)", True),
        ("__sci fi__", True),
        ("__${kind}__", True),
        ("a cat", False),
        ("{", False),
        ("a { b | c", False),
        ("{masterpiece}, {{best}}", False),
        ('{"a": 1}', False),
        ("a|b} {c", False),
        ("[cat|dog]", False),
        ("snake__case and other__name", False),
        ("my__init__.py", False),
        ("____", False),
        ("__", False),
        ("__a", False),
        ("a __ b __ c", False),
        ("5$$ each", False),
        ("{" * 50_000 + "|" * 50_000, False),
        ("__a" * 50_000, False),
        ("{" + "1" * 50_000, False),
    ],
)
def test_looks_dynamic(prompt: str, dynamic: bool) -> None:
    start = time.monotonic()
    assert looks_dynamic(prompt) is dynamic
    assert time.monotonic() - start < 2


def test_what_needs_no_library_loads_none(probe: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = probe(
        "import sys; from sdcli.prompts.wildcards import Expander, looks_dynamic; from pathlib import Path\n"
        "assert looks_dynamic('{a|b}'); e = Expander(Path('.')); e.check('a cat'); assert e.random('a cat', 1) == 'a cat'\n"
        "assert list(e.all('a cat', None)) == ['a cat']\n"
        "heavy = {'dynamicprompts', 'pyparsing', 'yaml', 'jinja2', 'torch', 'numpy'}; assert not heavy & set(sys.modules)\n"
        "import warnings; warnings.simplefilter('error'); assert e.random('{a|a}', 1) == 'a'\n"
        "assert not {'jinja2', 'torch', 'numpy', 'requests', 'yaml'} & set(sys.modules)"
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_weights_of_any_size_are_numbers(tmp_path: Path) -> None:
    expander = Expander(put(tmp_path, {"a.json": '["1000000000::x", "1000000000::y", "0.000001::z"]'}))
    assert {expander.random("{2$$__a__} {1000000000::p|0.0000001::q}", seed) for seed in range(40)} == {
        "x,y p",
        "y,x p",
    }
    assert math.isfinite(sum(len(text) for text in expander.all("{2$$__a__}", None)))
