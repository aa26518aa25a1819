"""A page that shows how one picture came out of noise: figures of a run that was looked into, their numbers and their words."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from sdcli import pictures
from sdcli.explain import pages
from sdcli.explain.figures import Figures
from sdcli.explain.painting import Album
from sdcli.pipeline import observing
from sdcli.record import SCHEMA, Record
from sdcli.request import GenerationRequest

if TYPE_CHECKING:
    from PIL.Image import Image

    from sdcli.metadata.inspecting import Found
    from sdcli.pipeline import Pipeline, Step
    from sdcli.record import GeneratedImage

GUIDANCES = (1.0, 4.0, 8.0, 14.0)
SEEDS = 4
FIGURES = 9
# The file of a page's numbers, and what those of its pictures are called.
NUMBERS = "explain.json"
_KINDS = "picture|words|schedule|forward|step|guidance|attention|latent|autoencoder|network|seed"
PICTURE = re.compile(rf"({_KINDS})(-[a-z0-9]+)*\.png")
# What is told of while it is made: how much of it is done, of how much, and what is being done.
Tell = Callable[[int, int, str], None]


@dataclass(frozen=True, kw_only=True)
class Explained:
    """The page (UTF-8), the files that go beside it by their names (none where none are wanted), and the picture; of one that was
    drawn again what is to be said of that, and whether its pixels are those that its record says (None: it says none, or the
    same was not asked for)."""

    page: bytes
    files: dict[str, bytes]
    generated: GeneratedImage
    again: str | None = None
    same: bool | None = None


def explain(
    pipeline: Pipeline, request: GenerationRequest, *, image: Image | None, again: Found | None, keep: bool, tell: Tell
) -> Explained:
    """Draw a resolved request's picture and explain it; `image` takes its place where noise is put onto a picture, `again` is
    the picture that the request is of.

    With `keep` there are files besides. Raises UsageError without the libraries of the extra `show`, and what drawing raises.
    """
    pages.environment()
    return _Explaining(pipeline, request, image, again, keep, tell).explain()


class _Explaining:
    def __init__(
        self,
        pipeline: Pipeline,
        request: GenerationRequest,
        image: Image | None,
        again: Found | None,
        keep: bool,
        tell: Tell,
    ) -> None:
        assert request.seed is not None
        self.pipeline, self.request, self.image, self.again = pipeline, request, image, again
        self.seed = request.seed
        self.album = Album(keep=keep)
        self.tell = tell
        self.guided = observing.guided(pipeline, msgspec.structs.replace(request, guidance_scale=GUIDANCES[-1]))
        others = [g for g in GUIDANCES if g != request.guidance_scale] if self.guided else []
        self.draws = 1 + len(others) + SEEDS - 1
        self.drawn = 0
        self.steps = observing.steps(pipeline, request)
        # Each step of each picture, and each figure.
        self.total = self.steps * self.draws + FIGURES

    def explain(self) -> Explained:
        seen = observing.observe(self.pipeline, self.request, self._hear("drawing, and looking inside"))
        self.drawn += 1
        self.final = seen.generated.image
        source, called, was = self.final, "the finished picture", self.final.size
        if self.image is not None:
            source = pictures.fitted(pictures.on_white(self.image), self.final.size, "fill").image
            called, was = "the picture of --image", self.image.size
        again, same = _again(self.again, seen.generated.record)
        figures = Figures(
            pipeline=self.pipeline, request=self.request, album=self.album, seen=seen,
            read=observing.words(self.pipeline, self.request), source=source, source_name=called,
            source_size=was, again=again, same=same, by_guidance=self._guidances(), by_seed=self._seeds(),
        )  # fmt: skip
        shown = {"final": figures.final()}
        for at, (name, make) in enumerate(figures.each()):
            self.tell(self.steps * self.draws + at, self.total, f"making figures: {name}")
            shown[name] = make()
        numbers = {name: figure["numbers"] for name, figure in shown.items()}
        page = pages.page("explain", {}, prompt=self.request.prompt, figures=shown, numbers=numbers)
        if self.album.keep:
            record = msgspec.to_builtins(seen.generated.record)
            told = {"schema": SCHEMA, "record": record, "files": list(self.album.files), **numbers}
            self.album.files[NUMBERS] = json.dumps(told, ensure_ascii=False, indent=1, allow_nan=False).encode(
                "utf-8", "backslashreplace"
            )
        return Explained(page=page, files=self.album.files, generated=seen.generated, again=again, same=same)

    def _hear(self, what: str) -> Callable[[Step], None]:
        def told(step: Step) -> None:
            self.tell(self.steps * self.drawn + self.steps * step.number // step.of, self.total, what)

        return told

    def _draw(self, request: GenerationRequest, what: str) -> Image:
        image = observing.draw(self.pipeline, request, self._hear(what))
        self.drawn += 1
        return image

    # The pictures that are drawn besides

    def _guidances(self) -> list[tuple[float, Image]]:
        if not self.guided:
            return []
        found = []
        for scale in GUIDANCES:
            request = msgspec.structs.replace(self.request, guidance_scale=scale)
            same = scale == self.request.guidance_scale
            found.append((scale, self.final if same else self._draw(request, f"drawing with guidance {scale:g}")))
        return found

    def _seeds(self) -> list[tuple[int, Image]]:
        found = [(self.seed, self.final)]
        for k in range(1, SEEDS):
            seed = (self.seed + k) % 2**63
            request = msgspec.structs.replace(self.request, seed=seed)
            found.append((seed, self._draw(request, f"drawing with seed {seed}")))
        return found


def _again(picture: Found | None, record: Record) -> tuple[str | None, bool | None]:
    """Return what is to be said of a picture that was drawn again, and whether it has the pixels that its record says."""
    if picture is None:
        return None, None
    name = Path(picture.path).name
    if picture.record is None:
        return f"Drawn from what {name} says, which is not its pixels.", None
    if picture.record.id != record.id:
        return f"Drawn from what {name} says, with other settings.", None
    if picture.record.pixels.sha256 == record.pixels.sha256:
        return f"Drawn again from {name}, pixel for pixel as its record says.", True
    then, now = picture.record.plan.dtype, record.plan.dtype
    why = f": it was drawn in {then}, and now in {now}" if then != now else ""
    return f"Drawn again from {name}, but not with the pixels that its record says{why}.", False
