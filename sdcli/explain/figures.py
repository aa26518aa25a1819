"""The figures of a page that explains a picture: what its template shows, and under `numbers` what is said of them as JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from sdcli import models
from sdcli.explain import charts, commands, painting
from sdcli.explain.painting import Album
from sdcli.metadata.inspecting import Found
from sdcli.pipeline import observing
from sdcli.request import GenerationRequest

if TYPE_CHECKING:
    from PIL.Image import Image

    from sdcli.pipeline import Pipeline
    from sdcli.pipeline.observing import Moment, Observed, Words

# The levels of noise that are shown, as shares of the training's timesteps.
LEVELS = (0.1, 0.25, 0.5, 0.75, 1.0)
# So many steps are shown of more, evenly; so many words of more, the first; each word's steps in so many parts.
MOST_STEPS, MOST_WORDS, PARTS = 50, 24, 4
MOST_SIGNS = 10
# Sides in pixels of the small pictures of a page.
FRAME, SMALL = 384, 192
AMPLIFIED = 8


@dataclass(frozen=True, kw_only=True)
class Figures:
    """The figures of a resolved request's run: `seen` is the run, `read` how its prompt was read, and `source` the picture
    (RGB, of the same size; of `source_size` before it was fitted), called `source_name`, that noise is put on and that goes
    through the autoencoder. `again` and `same` are as `Explained` has them. `by_guidance` and `by_seed`
    are the same picture otherwise drawn, of seeds the run's own first. Pictures go into the album."""

    pipeline: Pipeline
    request: GenerationRequest
    album: Album
    seen: Observed
    read: Words
    source: Image
    source_name: str
    source_size: tuple[int, int]
    again: str | None
    same: bool | None
    by_guidance: Sequence[tuple[float, Image]]
    by_seed: Sequence[tuple[int, Image]]

    def each(self) -> list[tuple[str, Callable[[], dict[str, Any]]]]:
        """Return what makes each figure, in the page's order."""
        return [
            ("words", self.words), ("schedule", self.schedule), ("forward", self.forward), ("backward", self.backward),
            ("guidance", self.guidance), ("attention", self.attention), ("autoencoder", self.autoencoder),
            ("network", self.network), ("seed", self.seed),
        ]  # fmt: skip

    @property
    def picture(self) -> Image:
        """The finished picture."""
        return self.seen.generated.image

    @property
    def steps(self) -> int:
        """How many steps were drawn."""
        return observing.steps(self.pipeline, self.request)

    def _chart(self, name: str, chart: charts.Chart) -> charts.Chart:
        if self.album.keep:
            self.album.files[f"{name}.png"] = chart.png()
        return chart

    def final(self) -> dict[str, Any]:
        from markupsafe import escape

        record, request = self.seen.generated.record, self.request
        # Of files it has the names, as the picture's record has: a page is passed on.
        made = Found(
            path="", format="sdcli", request=msgspec.to_builtins(record.request), model=None, unmapped={}, raw={}, record=record
        )  # fmt: skip
        alt = f"The finished picture of: {request.prompt}"
        command = commands.in_full(made, "")
        if command is not None:
            # What it would choose itself depends on the machine, and the pixels on it.
            command = command.replace("sdcli generate", f"sdcli generate --dtype {record.plan.dtype}", 1)
        return {
            "picture": self.album.add("picture", self.picture, alt, exact=True),
            # As it is: a line's end inside quotes is one of the prompt's.
            "command": escape(command or ""),
            "numbers": {
                "prompt": request.prompt,
                "negative_prompt": request.negative_prompt,
                "model": record.model.name,
                "family": record.model.family,
                "seed": request.seed,
                "steps": request.num_inference_steps,
                "steps_drawn": self.steps,
                "network_calls": len(self.seen.moments),
                "starts_from": self._start,
                "has_mask": models.start_of(request).endswith("mask"),
                "guidance_scale": request.guidance_scale,
                "scheduler": record.scheduler.name or record.scheduler.class_name,
                "width": self.picture.width,
                "height": self.picture.height,
                "device": record.plan.device,
                "dtype": record.plan.dtype,
                "seconds": record.seconds.draw + record.seconds.decode,
                "pixels": record.pixels.sha256,
                "again": self.again,
                "same": self.same,
                "command": command,
                "command_note": commands.note(made),
            },
        }

    @property
    def _start(self) -> str:
        """What the drawing starts from; where a mask is painted over whole, that is noise, too."""
        if self.request.init_image is None:
            return "noise"
        return "noise" if models.start_of(self.request).endswith("mask") and self.request.strength == 1 else "picture"

    def words(self) -> dict[str, Any]:
        shown = self.read.words[: charts.MOST_WORDS]
        names = [word.text for word in shown]
        chart = None
        if names:
            alt = f"How alike the embeddings of these words are: {', '.join(names)}. The numbers are in the table."
            count = len(names)
            chart = self._chart("words", charts.similarity(names, self.read.similarity[:count, :count], alt))
        return {
            "chart": chart,
            "names": names,
            "left_out": len(self.read.words) - len(shown),
            "likest": _likest(self.read),
            "in_bytes": self.read.in_bytes,
            "numbers": {
                "chunks": [
                    [{"text": t.text, "id": t.id, "weight": t.weight, "position": t.position} for t in chunk]
                    for chunk in self.read.chunks
                ],
                "cut": self.read.cut,
                "used": sum(map(len, self.read.chunks)),
                "limit": self.read.limit,
                "vocabulary": self.read.vocabulary,
                "width": self.read.width,
                "until": self._held() if self.read.until is not None else None,
                "words": [{"text": w.text, "positions": list(w.positions)} for w in self.read.words],
                "similarity": [[round(float(v), 4) for v in row] for row in self.read.similarity],
            },
        }

    def _held(self) -> int:
        """Return in how many of the steps that were heard these words were read."""
        heard = len(self.seen.moments)
        # As `pipeline.wording.Words.after` counts, where a scheduler takes more or fewer.
        return heard if self.read.until is None else -(-self.read.until * heard // self.steps)

    def schedule(self) -> dict[str, Any]:
        signals, sigmas = observing.training(self.pipeline)
        steps = [_shares(m) for m in self.seen.moments if m.before is not None]
        alt = (
            f"Signal and noise over {len(signals)} timesteps of training: from nearly all noise at the left to nearly none at "
            f"the right. {len(steps)} marks show the steps of this run."
        )
        points = [(s["timestep"], s["signal_share"], s["sigma_share"]) for s in steps]
        return {
            "chart": self._chart("schedule", charts.schedule(signals, sigmas, points, alt)),
            "numbers": {
                "scheduler": self.seen.generated.record.scheduler.class_name,
                "prediction_type": self.pipeline.own_scheduler.config.get("prediction_type", "epsilon"),
                "training": {"signal": [round(v, 6) for v in signals], "sigma": [round(v, 6) for v in sigmas]},
                "steps": steps,
            },
        }

    def forward(self) -> dict[str, Any]:
        count = len(observing.training(self.pipeline)[0])
        timesteps = [max(0, round(share * count) - 1) for share in LEVELS]
        noised = observing.noised(self.pipeline, self.source, timesteps, self.by_seed[0][0])
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
            "source": self.album.add("forward-picture", self.source, alt, largest=FRAME),
            "levels": shown,
            "numbers": {"of": self.source_name, "size": list(self.source_size), "levels": levels},
        }

    def backward(self) -> dict[str, Any]:
        known = [moment for moment in self.seen.moments if moment.before is not None]
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
        shares = map(_shares, known)
        times = [m.timestep for m in known]
        return {
            "frames": frames,
            "of": len(self.seen.moments),
            "scaled": next((s for s in shares if abs(s["sigma"] - s["sigma_share"]) > 1e-3), None),
            # A step is tried where it would end: never before there was one.
            "tries": any(a == b for a, b in zip(times[1:], times[2:], strict=False)),
            "numbers": {"steps": [{"number": m.number, **_told(m)} for m in known]},
        }

    def guidance(self) -> dict[str, Any]:
        scales = [
            (scale, self.album.add(f"guidance-{scale:g}", picture, f"Drawn with guidance {scale:g}", largest=FRAME))
            for scale, picture in self.by_guidance
        ]
        both = [m for m in self.seen.moments if m.prompted is not None]
        if not both:
            return {"step": None, "chart": None, "scales": scales, "numbers": {"steps": [], "step": None}}
        moment = both[(len(both) - 1) // 3]
        parts = observing.decode(self.pipeline, [moment.unprompted, moment.prompted, moment.clean])
        apart = (moment.prompted - moment.unprompted).square().mean(0).sqrt().numpy()
        spread = painting.greys(apart).resize(self.picture.size)
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
                "error": observing.rms(m.guided - m.clean), "factor": m.factor,
            }
            for m in both
        ]  # fmt: skip
        alt = f"How far the prompt moves the clean latent in each step; the dashed line is step {moment.number}."
        points = [(s["number"], s["difference"]) for s in steps]
        chart = charts.line(points, moment.number, ("step", "difference (rms)"), alt) if len(points) > 1 else None
        return {
            "step": moment.number,
            "pictures": shown,
            "chart": self._chart("guidance", chart) if chart else None,
            "scales": scales,
            "numbers": {
                "scale": self.request.guidance_scale,
                "rescale": self.request.guidance_rescale,
                "step": moment.number,
                "steps": steps,
            },
        }

    def attention(self) -> dict[str, Any]:
        speaking = [word for word in self.read.words if word.speaks]
        attention = self.seen.attention
        # What is read may change on the way: these words held until then.
        last = self._held()
        shares = attention.shares(last)
        base = self.picture.copy()
        base.thumbnail((painting.LARGEST, painting.LARGEST))
        spans = _spans(last, PARTS)
        shown, told = [], []
        for at, word in enumerate(speaking[:MOST_WORDS], 1):
            values = attention.map(word.positions, base.size, 0, last)
            name = word.text
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
        every = {position for word in self.read.words for position in word.positions}
        start = float(sum(shares[c * (self.read.limit + 2)] for c in range(len(self.read.chunks))))
        of_words = float(sum(shares[p] for p in every))
        layers = sum(count for _, count in attention.steps[0].values()) if attention.steps else 0
        return {
            "words": shown,
            "left_out": len(speaking) - len(shown),
            "signs": list(dict.fromkeys(w.text for w in self.read.words if not w.speaks))[:MOST_SIGNS],
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

    def autoencoder(self) -> dict[str, Any]:
        source = self.source
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

    def network(self) -> dict[str, Any]:
        seconds = sum(block.seconds for block in self.seen.blocks) or 1.0
        parameters = sum(block.parameters for block in self.seen.blocks) or 1
        told: list[dict[str, Any]] = [
            {
                "part": b.part, "name": b.name, "kind": b.kind, "parameters": b.parameters, "shape": list(b.shape),
                "runs": b.runs, "seconds": b.seconds, "share_of_time": b.seconds / seconds,
                "share_of_parameters": b.parameters / parameters,
            }
            for b in self.seen.blocks
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
                "seconds": sum(block.seconds for block in self.seen.blocks),
                "parameters": sum(block.parameters for block in self.seen.blocks),
                "unet_parameters": self.seen.parameters,
                "unet_share_of_time": sum(t["share_of_time"] for t in told if t["part"] == "U-Net"),
            },
        }

    def seed(self) -> dict[str, Any]:
        shown = [
            (seed, self.album.add(f"seed-{seed}", p, f"Drawn with seed {seed}", largest=FRAME))
            for seed, p in self.by_seed
        ]
        return {"pictures": shown, "numbers": {"seeds": [seed for seed, _ in self.by_seed]}}


def _shares(moment: Moment) -> dict[str, Any]:
    """Return of which signal and noise a step's latents consist, and what that is at unit size."""
    assert moment.signal is not None and moment.sigma is not None
    size = math.hypot(moment.signal, moment.sigma)
    return {
        "number": moment.number, "timestep": moment.timestep, "signal": moment.signal, "sigma": moment.sigma,
        "signal_share": moment.signal / size, "sigma_share": moment.sigma / size,
    }  # fmt: skip


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
                found = (other.text, one.text, value)
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
