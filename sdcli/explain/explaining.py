"""A page that shows how one picture came out of noise: figures of a run that was looked into, their numbers and their words."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from sdcli import pictures
from sdcli.explain import charts, pages, painting
from sdcli.explain.painting import Album
from sdcli.pipeline import observing
from sdcli.record import SCHEMA
from sdcli.request import GenerationRequest

if TYPE_CHECKING:
    from PIL.Image import Image

    from sdcli.pipeline import Pipeline, Step
    from sdcli.pipeline.observing import Moment, Observed, Words
    from sdcli.record import GeneratedImage

GUIDANCES = (1.0, 4.0, 8.0, 14.0)
SEEDS = 4
# The levels of noise that are shown, as shares of the training's timesteps.
LEVELS = (0.1, 0.25, 0.5, 0.75, 1.0)
# So many steps are shown of more, evenly; so many words of more, the first; each word's steps in so many parts.
MOST_STEPS, MOST_WORDS, PARTS = 50, 40, 4
# Sides in pixels of the small pictures of a page.
FRAME, SMALL = 384, 192
AMPLIFIED = 8
FIGURES = 9
# What is told of while it is made: how much of it is done, of how much, and what is being done.
Tell = Callable[[int, int, str], None]


@dataclass(frozen=True, kw_only=True)
class Explained:
    """The page (UTF-8), the files that go beside it by their names (none where none are wanted), and the picture."""

    page: bytes
    files: dict[str, bytes]
    generated: GeneratedImage


def explain(
    pipeline: Pipeline, request: GenerationRequest, *, image: Image | None, keep: bool, tell: Tell
) -> Explained:
    """Draw a resolved request's picture and explain it; `image` takes its place where noise is put onto a picture.

    With `keep` there are files besides. Raises UsageError without the libraries of the extra `show`, and what drawing raises.
    """
    pages.environment()
    return _Explaining(pipeline, request, image, keep, tell).explain()


class _Explaining:
    def __init__(
        self, pipeline: Pipeline, request: GenerationRequest, image: Image | None, keep: bool, tell: Tell
    ) -> None:
        assert request.seed is not None
        self.pipeline, self.request, self.image = pipeline, request, image
        self.seed = request.seed
        self.album = Album(keep=keep)
        self.tell = tell
        self.guided = observing.guided(pipeline, msgspec.structs.replace(request, guidance_scale=GUIDANCES[-1]))
        others = [g for g in GUIDANCES if g != request.guidance_scale] if self.guided else []
        self.draws = 1 + len(others) + SEEDS - 1
        self.drawn = 0
        self.steps = request.num_inference_steps
        # Each step of each picture, and each figure.
        self.total = self.steps * self.draws + FIGURES

    def explain(self) -> Explained:
        seen = observing.observe(self.pipeline, self.request, self._hear("drawing, and looking inside"))
        self.drawn += 1
        self.final = seen.generated.image
        words = observing.words(self.pipeline, self.request)
        by_guidance, by_seed = self._guidances(), self._seeds()
        figures: dict[str, Any] = {"final": self._final(seen)}
        made: list[tuple[str, Callable[[], dict[str, Any]]]] = [
            ("words", lambda: self._words(words)),
            ("schedule", lambda: self._schedule(seen)),
            ("forward", self._forward),
            ("backward", lambda: self._backward(seen)),
            ("guidance", lambda: self._guidance(seen, by_guidance)),
            ("attention", lambda: self._attention(seen, words)),
            ("autoencoder", self._autoencoder),
            ("network", lambda: self._network(seen)),
            ("seed", lambda: self._seed(by_seed)),
        ]
        for at, (name, make) in enumerate(made):
            self.tell(self.steps * self.draws + at, self.total, f"making figures: {name}")
            figures[name] = make()
        numbers = {name: figure["numbers"] for name, figure in figures.items()}
        page = pages.page("explain", {}, prompt=_plain(self.request.prompt), figures=figures, numbers=numbers)
        if self.album.keep:
            told = {"schema": SCHEMA, "record": msgspec.to_builtins(seen.generated.record), **numbers}
            self.album.files["explain.json"] = json.dumps(told, ensure_ascii=False, indent=1, allow_nan=False).encode(
                "utf-8", "backslashreplace"
            )
        return Explained(page=page, files=self.album.files, generated=seen.generated)

    def _hear(self, what: str) -> Callable[[Step], None]:
        def told(step: Step) -> None:
            self.tell(self.steps * self.drawn + self.steps * step.number // step.of, self.total, what)

        return told

    def _draw(self, request: GenerationRequest, what: str) -> Image:
        image = observing.draw(self.pipeline, request, self._hear(what))
        self.drawn += 1
        return image

    def _chart(self, name: str, chart: charts.Chart) -> charts.Chart:
        if self.album.keep:
            self.album.files[f"{name}.png"] = chart.png()
        return chart

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

    # Figures: what the template shows, and under `numbers` what the JSON says.

    def _final(self, seen: Observed) -> dict[str, Any]:
        record, request = seen.generated.record, self.request
        prompt = _plain(request.prompt)
        return {
            "picture": self.album.add("picture", self.final, f"The finished picture of: {prompt}", exact=True),
            "numbers": {
                "prompt": request.prompt,
                "negative_prompt": request.negative_prompt,
                "model": record.model.name,
                "family": record.model.family,
                "seed": self.seed,
                "steps": request.num_inference_steps,
                "guidance_scale": request.guidance_scale,
                "scheduler": record.scheduler.name or record.scheduler.class_name,
                "width": self.final.width,
                "height": self.final.height,
                "device": record.plan.device,
                "dtype": record.plan.dtype,
                "seconds": record.seconds.draw + record.seconds.decode,
                "pixels": record.pixels.sha256,
            },
        }

    def _words(self, words: Words) -> dict[str, Any]:
        shown = words.words[: charts.MOST_WORDS]
        names = [_plain(word.text) for word in shown]
        chart = None
        if names:
            alt = f"How alike the embeddings of these words are: {', '.join(names)}. The numbers are in the table."
            count = len(names)
            chart = self._chart("words", charts.similarity(names, words.similarity[:count, :count], alt))
        tokens = [[_plain(token.text) for token in chunk] for chunk in words.chunks]
        return {
            "chart": chart,
            "shown": tokens,
            "names": names,
            "left_out": len(words.words) - len(shown),
            "likest": _likest(words),
            "numbers": {
                "chunks": [
                    [{"text": t.text, "id": t.id, "weight": t.weight, "position": t.position} for t in chunk]
                    for chunk in words.chunks
                ],
                "cut": words.cut,
                "used": sum(map(len, words.chunks)),
                "limit": words.limit,
                "vocabulary": words.vocabulary,
                "width": words.width,
                "until": words.until,
                "words": [{"text": w.text, "positions": list(w.positions)} for w in words.words],
                "similarity": [[round(float(v), 4) for v in row] for row in words.similarity],
            },
        }

    def _schedule(self, seen: Observed) -> dict[str, Any]:
        signals, sigmas = observing.training(self.pipeline)
        steps = []
        for moment in seen.moments:
            if moment.signal is None or moment.sigma is None:
                continue
            size = math.hypot(moment.signal, moment.sigma)
            steps.append(
                {
                    "number": moment.number, "timestep": moment.timestep, "signal": moment.signal, "sigma": moment.sigma,
                    "signal_share": moment.signal / size, "sigma_share": moment.sigma / size,
                }
            )  # fmt: skip
        alt = (
            f"Signal and noise over {len(signals)} timesteps of training: from nearly all noise at the left to nearly none at "
            f"the right. {len(steps)} marks show the steps of this run."
        )
        points = [(s["timestep"], s["signal_share"], s["sigma_share"]) for s in steps]
        return {
            "chart": self._chart("schedule", charts.schedule(signals, sigmas, points, alt)),
            "numbers": {
                "scheduler": seen.generated.record.scheduler.class_name,
                "prediction_type": self.pipeline.own_scheduler.config.get("prediction_type", "epsilon"),
                "training": {"signal": [round(v, 6) for v in signals], "sigma": [round(v, 6) for v in sigmas]},
                "steps": steps,
            },
        }

    @property
    def _source(self) -> Image:
        """The picture that noise is put on, and that goes through the autoencoder."""
        if self.image is None:
            return self.final
        return pictures.fitted(pictures.on_white(self.image), self.final.size, "fill").image

    def _forward(self) -> dict[str, Any]:
        count = len(observing.training(self.pipeline)[0])
        timesteps = [max(0, round(share * count) - 1) for share in LEVELS]
        noised = observing.noised(self.pipeline, self._source, timesteps, self.seed)
        levels, shown = [], []
        for one in noised:
            alt = f"The picture at timestep {one.timestep}: {one.signal:.2f} of it and {one.sigma:.2f} of noise"
            shown.append((self.album.add(f"forward-{one.timestep:03}", one.picture, alt, largest=FRAME), one))
            levels.append(
                {
                    "timestep": one.timestep, "signal": one.signal, "sigma": one.sigma, "rms_clean": one.rms_clean,
                    "rms_noise": one.rms_noise, "mean_product": one.mean_product, "rms": one.rms,
                }
            )  # fmt: skip
        alt = "The picture without noise"
        return {
            "source": self.album.add("forward-picture", self._source, alt, largest=FRAME),
            "levels": shown,
            "numbers": {"of": "the finished picture" if self.image is None else "the given picture", "levels": levels},
        }

    def _backward(self, seen: Observed) -> dict[str, Any]:
        known = [moment for moment in seen.moments if moment.before is not None]
        shown = _evenly(known, MOST_STEPS)
        latents = [part for m in shown for part in (m.unit, m.noise, m.clean)]
        decoded = observing.decode(self.pipeline, latents)
        frames = []
        for at, moment in enumerate(shown):
            names = ("noisy", "noise", "clean")
            alts = (
                f"Step {moment.number}: what it begins with", f"Step {moment.number}: the noise that the network sees in it",
                f"Step {moment.number}: the clean picture that is left",
            )  # fmt: skip
            three = [
                self.album.add(f"step-{moment.number:03}-{name}", picture, alt, largest=FRAME)
                for name, picture, alt in zip(names, decoded[3 * at : 3 * at + 3], alts, strict=True)
            ]
            frames.append({"number": moment.number, "pictures": three, **_told(moment)})
        return {
            "frames": frames,
            "of": len(seen.moments),
            "numbers": {"steps": [{"number": m.number, **_told(m)} for m in known]},
        }

    def _guidance(self, seen: Observed, by_guidance: Sequence[tuple[float, Image]]) -> dict[str, Any]:
        scales = [
            (scale, self.album.add(f"guidance-{scale:g}", picture, f"Drawn with guidance {scale:g}", largest=FRAME))
            for scale, picture in by_guidance
        ]
        both = [m for m in seen.moments if m.prompted is not None]
        if not both:
            return {"step": None, "chart": None, "scales": scales, "numbers": {"steps": [], "step": None}}
        moment = both[(len(both) - 1) // 3]
        parts = observing.decode(self.pipeline, [moment.unprompted, moment.prompted, moment.clean])
        apart = (moment.prompted - moment.unprompted).square().mean(0).sqrt().numpy()
        spread = painting.greys(apart).resize(self.final.size)
        names = ("without", "with", "guided")
        alts = (
            "The step's clean picture without the prompt",
            "The step's clean picture with the prompt",
            "Both, guided",
        )
        shown = [
            self.album.add(f"guidance-step-{name}", picture, alt, largest=FRAME)
            for name, picture, alt in zip(names, parts, alts, strict=True)
        ]
        alt = "Where the two differ: the lighter, the more"
        shown.append(self.album.add("guidance-step-difference", spread, alt, largest=FRAME))
        steps = [
            {
                "number": m.number, "difference": observing.rms(m.prompted - m.unprompted),
                "error": observing.rms(
                    m.unprompted + self.request.guidance_scale * (m.prompted - m.unprompted) - m.clean
                ),
            }
            for m in both
        ]  # fmt: skip
        chart = charts.line(
            [(s["number"], s["difference"]) for s in steps],
            moment.number,
            ("step", "difference (rms)"),
            f"How far the prompt moves the clean latent in each step; the dashed line is step {moment.number}.",
        )
        return {
            "step": moment.number,
            "pictures": shown,
            "chart": self._chart("guidance", chart),
            "scales": scales,
            "numbers": {"scale": self.request.guidance_scale, "step": moment.number, "steps": steps},
        }

    def _attention(self, seen: Observed, words: Words) -> dict[str, Any]:
        speaking = [word for word in words.words if word.speaks]
        attention = seen.attention
        # What is read may change on the way: these words held until then.
        last = len(attention.steps)
        if words.until is not None:
            last = max(1, words.until * last // self.request.num_inference_steps)
        shares = attention.shares()
        base = self.final.copy()
        base.thumbnail((painting.LARGEST, painting.LARGEST))
        spans = _spans(last, PARTS)
        shown, told = [], []
        for at, word in enumerate(speaking[:MOST_WORDS], 1):
            values = attention.map(word.positions, base.size, 0, last)
            name = _plain(word.text)
            alt = f"Where “{name}” was looked for: bright where most"
            overlay = painting.heat(base, values, float(values.max()))
            whole = self.album.add(f"attention-{at:02}", overlay, alt, largest=FRAME)
            parts = []
            maps = [attention.map(word.positions, base.size, first, end) for first, end in spans]
            most = max((float(part.max()) for part in maps), default=0.0)
            for (first, end), part in zip(spans, maps, strict=True):
                alt = f"“{name}” in steps {first + 1} to {end}"
                overlay = painting.heat(base, part, most)
                file = f"attention-{at:02}-steps-{first + 1:03}-{end:03}"
                parts.append((first + 1, end, self.album.add(file, overlay, alt, largest=SMALL)))
            share = float(sum(shares[p] for p in word.positions))
            row, column = divmod(int(values.argmax()), values.shape[1])
            place = {"x": (column + 0.5) / values.shape[1], "y": (row + 0.5) / values.shape[0]}
            shown.append({"word": name, "picture": whole, "parts": parts, "share": share, **place})
            told.append({"word": word.text, "file": f"attention-{at:02}.png", "share": share, "most_at": place})
        every = {position for word in words.words for position in word.positions}
        start = float(sum(shares[c * (words.limit + 2)] for c in range(len(words.chunks))))
        of_words = float(sum(shares[p] for p in every))
        layers = sum(count for _, count in attention.steps[0].values()) if attention.steps else 0
        return {
            "words": shown,
            "left_out": len(speaking) - len(shown),
            "numbers": {
                "layers": layers,
                "steps": last,
                "sizes": sorted({side[::-1] for step in attention.steps for side in step}, reverse=True),
                "share_of_words": of_words,
                "share_of_start": start,
                "share_of_rest": max(0.0, 1 - of_words - start),
                "words": told,
            },
        }

    def _autoencoder(self) -> dict[str, Any]:
        source = self._source
        found = observing.autoencoded(self.pipeline, source)
        channels, height, width = found.channels.shape
        shown = []
        for at, values in enumerate(found.channels, 1):
            picture = painting.enlarged(painting.greys(values), SMALL)
            shown.append(
                self.album.add(f"latent-{at}", picture, f"Channel {at} of the latent", largest=FRAME, exact=True)
            )
        apart, psnr, most = painting.difference(source, found.picture, AMPLIFIED)
        pixels, latents = source.width * source.height * 3, channels * height * width
        alt = f"What is lost, {AMPLIFIED} times as strong"
        return {
            "channels": shown,
            "before": self.album.add("autoencoder-before", source, "Before", largest=FRAME),
            "after": self.album.add("autoencoder-after", found.picture, "Encoded and decoded again", largest=FRAME),
            "difference": self.album.add("autoencoder-difference", apart, alt, largest=FRAME),
            "numbers": {
                "picture": [source.height, source.width, 3],
                "latent": [channels, height, width],
                "numbers_in_picture": pixels,
                "numbers_in_latent": latents,
                "factor": pixels / latents,
                "scaling_factor": float(self.pipeline.pipe.vae.config.scaling_factor),
                "psnr": psnr if math.isfinite(psnr) else None,
                "largest_difference": most,
                "amplified": AMPLIFIED,
            },
        }

    def _network(self, seen: Observed) -> dict[str, Any]:
        seconds = sum(block.seconds for block in seen.blocks) or 1.0
        parameters = sum(block.parameters for block in seen.blocks) or 1
        told: list[dict[str, Any]] = [
            {
                "part": b.part, "name": b.name, "kind": b.kind, "parameters": b.parameters, "shape": list(b.shape),
                "runs": b.runs, "seconds": b.seconds, "share_of_time": b.seconds / seconds,
                "share_of_parameters": b.parameters / parameters,
            }
            for b in seen.blocks
        ]  # fmt: skip
        large = [t for t in told if max(t["share_of_time"], t["share_of_parameters"]) >= 0.01]
        chart = charts.bars(
            [t["name"] for t in large],
            [(t["share_of_time"], t["share_of_parameters"]) for t in large],
            ("time", "parameters"),
            "Each block's share of the time and of the parameters; the numbers are in the table.",
        )
        return {
            "chart": self._chart("network", chart),
            "numbers": {
                "blocks": told,
                "seconds": sum(block.seconds for block in seen.blocks),
                "parameters": sum(block.parameters for block in seen.blocks),
                "unet_parameters": seen.parameters,
                "unet_share_of_time": sum(t["share_of_time"] for t in told if t["part"] == "U-Net"),
            },
        }

    def _seed(self, by_seed: Sequence[tuple[int, Image]]) -> dict[str, Any]:
        shown = [
            (seed, self.album.add(f"seed-{seed}", p, f"Drawn with seed {seed}", largest=FRAME)) for seed, p in by_seed
        ]
        return {"pictures": shown, "numbers": {"seeds": [seed for seed, _ in by_seed]}}


def _told(moment: Moment) -> dict[str, Any]:
    """Return the numbers of a step that its latents were heard of."""
    return {
        "timestep": moment.timestep, "signal": moment.signal, "sigma": moment.sigma,
        "rms_before": observing.rms(moment.before), "rms_noise": observing.rms(moment.noise),
        "rms_clean": observing.rms(moment.clean), "error": moment.error,
    }  # fmt: skip


def _likest(words: Words) -> tuple[str, str, float] | None:
    """Return the two different words whose embeddings are most alike, and how much."""
    found: tuple[str, str, float] | None = None
    for i, one in enumerate(words.words):
        for k, other in enumerate(words.words[:i]):
            value = float(words.similarity[i, k])
            if one.speaks and other.speaks and one.text != other.text and (found is None or value > found[2]):
                found = (_plain(other.text), _plain(one.text), value)
    return found


def _spans(count: int, parts: int) -> list[tuple[int, int]]:
    """Return [first, end) of nearly equal parts of `count` steps; fewer where there are not so many steps."""
    parts = min(parts, count)
    edges = [count * i // parts for i in range(parts + 1)] if parts else []
    return list(zip(edges, edges[1:], strict=False))


def _evenly(many: Sequence[Moment], most: int) -> list[Moment]:
    """Return at most so many, evenly, with the first and the last."""
    if len(many) <= most:
        return list(many)
    return [many[round(i * (len(many) - 1) / (most - 1))] for i in range(most)]


def _plain(text: str) -> str:
    """Return a text without characters that are not seen, or that turn what is beside them round."""
    return "".join(c if c.isprintable() or c == " " else "\N{REPLACEMENT CHARACTER}" for c in text)
