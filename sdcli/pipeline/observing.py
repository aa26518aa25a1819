"""Looking inside: what the parts of a Stable Diffusion model did while they drew one picture, for those who explain it."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from sdcli import schedulers
from sdcli.errors import UsageError
from sdcli.models import Model
from sdcli.pipeline.hearing import ESTIMATES, Step, split
from sdcli.pipeline.machine import backend
from sdcli.pipeline.previewing import scaling, widened
from sdcli.pipeline.requests import drawn
from sdcli.prompts import syntax
from sdcli.record import GeneratedImage
from sdcli.request import GenerationRequest

if TYPE_CHECKING:
    from PIL.Image import Image

    from sdcli.pipeline.drawing import Pipeline

OBSERVED = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
# Latents that are decoded at once: so many pixels, and no more than so many of them.
PIXELS_AT_ONCE, LATENTS_AT_ONCE = 2**20, 8
# How CLIP's tokenizer marks a token that ends a word.
WORD_END = "</w>"
Told = Callable[[Step], None]


def check_observed(request: GenerationRequest, model: Model) -> None:
    """Refuse what can't be looked into: other models than Stable Diffusion 1.x, 2.x and XL, and drawing twice."""
    family = model.family
    if family is not None and family.class_name not in OBSERVED:
        raise UsageError(
            f"{model.name} ({family.name}) can't be explained: that is for Stable Diffusion 1.x, 2.x and XL",
            "name another --model; demo works at once",
        )
    for field in ("hires", "upscale"):
        if getattr(request, field) is not None:
            hint = f"leave it out; --set {field}= takes it out of what a preset, the settings or a picture say"
            raise UsageError(f"{field} can't be explained: it draws over what is shown", hint)
    if request.strength == 0:
        raise UsageError("with --strength 0 nothing is drawn, so there is nothing to explain", "raise it")


# The run


class Moment(Step, frozen=True, kw_only=True):
    """A step as it was heard, of one picture (channels, height / 8, width / 8), without the latents that it ended with.

    `prompted` and `unprompted` are the clean ones by the network's word with the prompt alone and
    without it, None where it was asked once; `factor` is what the guided word is rescaled by (arXiv 2305.08891, section 3.4), 1
    for not at all, and `guided` the clean ones that follow. All are torch tensors, fp32, on the CPU.
    """

    latents: Any = None
    prompted: Any = None
    unprompted: Any = None
    guided: Any = None
    factor: float = 1.0

    @property
    def error(self) -> float:
        """How far signal * clean + sigma * noise is from the latents at most, as a share of their root mean square."""
        assert self.signal is not None and self.sigma is not None
        made = self.signal * self.clean + self.sigma * self.noise
        return float((made - self.before).abs().max() / rms(self.before))


@dataclass(frozen=True, kw_only=True)
class Block:
    """A part of the networks: what it belongs to (`U-Net` ...), its name and class, its parameters, the seconds that it took in
    all of the run, how often it ran, and the shape of what it gave out."""

    part: str
    name: str
    kind: str
    parameters: int
    seconds: float
    runs: int
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Observed:
    """A run that was looked into."""

    generated: GeneratedImage
    moments: tuple[Moment, ...]
    attention: Attention
    blocks: tuple[Block, ...]
    parameters: int


def observe(pipeline: Pipeline, request: GenerationRequest, told: Told) -> Observed:
    """Draw one picture, bit for bit as it is drawn unobserved, and look inside. `told` hears each step."""
    pipe = pipeline.pipe
    assert request.width is not None and request.height is not None
    factor = pipe.vae_scale_factor
    wait = backend(pipeline.decision.device).synchronize
    attention = _Gathering(pipe.unet, (request.height // factor, request.width // factor), wait)
    clock = _Clock(wait, lambda: attention.seconds)
    moments = _Moments(pipe, request, attention, told)
    with ExitStack() as entered:
        # The clock goes round the gathering, whose seconds it takes off.
        for part, network in _networks(pipe):
            entered.enter_context(clock.on(part, network))
        entered.enter_context(attention)
        entered.enter_context(moments)
        (generated,) = pipeline.generate([request], listener=moments)
    return Observed(
        generated=generated,
        moments=tuple(moments.found),
        attention=Attention(steps=tuple(attention.steps)),
        blocks=tuple(clock.blocks()),
        parameters=sum(p.numel() for p in pipe.unet.parameters()),
    )


def steps(pipeline: Pipeline, request: GenerationRequest) -> int:
    """Return how many of a resolved request's steps are drawn: from a picture, only the last of them."""
    return drawn(request, pipeline.family)[0]


def draw(pipeline: Pipeline, request: GenerationRequest, told: Told) -> Image:
    """Draw one picture; `told` hears each step."""
    (generated,) = pipeline.generate([request], listener=told)
    return generated.image


def guided(pipeline: Pipeline, request: GenerationRequest) -> bool:
    """Whether guidance has an effect on a request, and its model can be guided."""
    return pipeline.model.guided and pipeline.way.guided(request)


class _Moments:
    """A listener that keeps what it hears."""

    hears = frozenset({ESTIMATES})

    def __init__(self, pipe: Any, request: GenerationRequest, attention: _Gathering, told: Told) -> None:
        self.pipe, self.request, self.attention, self.told = pipe, request, attention, told
        self.found: list[Moment] = []
        self.output: Any = None

    def __enter__(self) -> _Moments:
        def heard(_: Any, __: Any, out: Any) -> None:
            self.output = (out[0] if isinstance(out, tuple) else out.sample).detach()

        self.hook = self.pipe.unet.register_forward_hook(heard)
        return self

    def __exit__(self, *_: object) -> None:
        self.hook.remove()

    def __call__(self, step: Step) -> None:
        if step.number == 1:  # A pass that ran out of memory begins again.
            self.found.clear()
            self.attention.steps.clear()
        self.attention.flush()
        moment = Moment(number=step.number, of=step.of, timestep=step.timestep)
        if step.before is not None and step.sigma is not None and step.signal is not None:
            moment = replace(
                moment, sigma=step.sigma, signal=step.signal, before=_kept(step.before), noise=_kept(step.noise),
                clean=_kept(step.clean),
            )  # fmt: skip
            if self.output is not None and len(self.output) == 2:
                moment = self._halves(moment)
        self.found.append(moment)
        self.told(step)

    def _halves(self, moment: Moment) -> Moment:
        """Return a step with what the network said without the prompt and with it, which a pass asks in this order."""
        kind, channels = self.pipe.scheduler.config.get("prediction_type", "epsilon"), len(moment.before)
        assert moment.signal is not None and moment.sigma is not None
        without, with_it = (_kept(half[None, :channels]) for half in self.output)
        guided = without + self.request.guidance_scale * (with_it - without)
        share = self.request.guidance_rescale
        factor = 1 - share + share * float(with_it.std() / guided.std()) if share else 1.0
        found = [
            split(kind, moment.before, said, moment.signal, moment.sigma)
            for said in (without, with_it, factor * guided)
        ]
        clean = [parts[1] for parts in found if parts is not None]
        if len(clean) < 3:
            return moment
        return replace(moment, unprompted=clean[0], prompted=clean[1], guided=clean[2], factor=factor)


def _kept(latents: Any) -> Any:
    """Return the first of a pack's latents as a copy that nothing changes."""
    return latents[0].detach().float().cpu().clone()


def rms(values: Any) -> float:
    """Return the root mean square of a tensor."""
    return float(values.float().square().mean().sqrt())


# Attention


class _Gathering:
    """Gathers where each word is looked for, beside the model's own attention, which stays what it is.

    Of every cross-attention layer the queries and keys that the model itself makes are taken, and softmax(Q K^T / sqrt(d)) is
    made of them once more: of the half with the prompt, in fp32, averaged over the heads.
    """

    def __init__(self, unet: Any, side: tuple[int, int], wait: Callable[[], None]) -> None:
        self.side, self._wait = side, wait
        self.steps: list[Maps] = []
        self.seconds = 0.0
        self._taken: dict[tuple[str, str], Any] = {}
        self._now: Maps = {}
        self._unet = unet

    def __enter__(self) -> _Gathering:
        self._hooks = [self._unet.register_forward_pre_hook(self._begin)]
        self._listening = False
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _begin(self, *_: Any) -> None:
        self._now.clear()
        if self._listening:
            return
        # Only now: adapters, which a pass puts on before it, take the place of layers.
        self._listening = True
        for name, layer in self._unet.named_modules():
            if name.endswith("attn2"):
                self._listen(name, layer)

    def _listen(self, name: str, layer: Any) -> None:
        def took(what: str) -> Callable[..., None]:
            def take(_: Any, __: Any, out: Any) -> None:
                self._taken[name, what] = out

            return take

        def ran(module: Any, _: Any, __: Any) -> None:
            self._wait()
            began = time.perf_counter()
            self._add(module, self._taken.pop((name, "q")), self._taken.pop((name, "k")))
            self._wait()
            self.seconds += time.perf_counter() - began

        self._hooks.append(layer.to_q.register_forward_hook(took("q")))
        self._hooks.append(layer.to_k.register_forward_hook(took("k")))
        self._hooks.append(layer.register_forward_hook(ran))

    def _add(self, layer: Any, query: Any, key: Any) -> None:
        q, k = (rows[-1].unflatten(-1, (layer.heads, -1)).transpose(0, 1).float() for rows in (query, key))
        looked = (q @ k.transpose(1, 2) * layer.scale).softmax(-1).mean(0)
        side = _side(self.side, len(looked))
        grid = looked.T.reshape(-1, *side)
        total, count = self._now.get(side, (0, 0))
        self._now[side] = total + grid, count + 1

    def flush(self) -> None:
        """Keep what the network's last call gathered as a step's."""
        self.steps.append({side: (total.cpu(), count) for side, (total, count) in self._now.items()})
        self._now.clear()


# Sums over layers (tokens, height, width), and of how many, by their size.
Maps = dict[tuple[int, int], tuple[Any, int]]


def _side(side: tuple[int, int], cells: int) -> tuple[int, int]:
    """Return the height and width of a layer of so many cells: the latent's, halved as often as it takes."""
    height, width = side
    while height * width > cells:
        height, width = -(-height // 2), -(-width // 2)
    return height, width


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Where words were looked for: the cross-attention of all layers and heads, a step at a time.

    Maps are gathered as in DAAM (arXiv 2210.04885): brought to one size, and averaged over layers, heads and steps.
    """

    steps: tuple[Maps, ...]

    def map(self, positions: Sequence[int], size: tuple[int, int], first: int = 0, last: int | None = None) -> Any:
        """Return where the tokens at `positions` (of all chunks, marks included) were looked for in steps [first, last):
        NumPy (height, width) of `size`, which is width and height; the share of attention that they got there."""
        import torch
        from torch.nn.functional import interpolate

        steps = self.steps[first:last]
        made, layers = torch.zeros(size[::-1]), 0
        for side in {side for step in steps for side in step}:
            total = sum(step[side][0][list(positions)].sum(0) for step in steps)
            layers += sum(step[side][1] for step in steps)
            made += interpolate(total[None, None], size[::-1], mode="bicubic", align_corners=False)[0, 0]
        return (made / max(layers, 1)).clamp(min=0).numpy()

    def shares(self, last: int | None = None) -> Any:
        """Return the share of all attention that each position got in steps [0, last): NumPy (tokens,), which sum up to 1."""
        import torch

        found = [total.mean((1, 2)) for step in self.steps[:last] for total, _ in step.values()]
        layers = sum(count for step in self.steps[:last] for _, count in step.values())
        return (torch.stack(found).sum(0) / layers).numpy()


# Time


def _networks(pipe: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the parts that draw a picture, each with its blocks in the order in which they run."""
    for name, said in (("text_encoder", "text encoder"), ("text_encoder_2", "second text encoder")):
        if getattr(pipe, name, None) is not None:
            yield said, {"": getattr(pipe, name)}
    blocks: dict[str, Any] = {}
    for name, child in pipe.unet.named_children():
        many = name in ("down_blocks", "up_blocks")
        blocks |= {f"{name}.{i}": one for i, one in enumerate(child)} if many else {name: child}
    # Made before the steps in the network, they are also named before; the middle is not.
    order = [n for n in blocks if n not in ("mid_block",) and not n.startswith("up_") and not n.startswith("conv_")]
    order = ["conv_in", *order, "mid_block", *(n for n in blocks if n.startswith("up_"))]
    order += [n for n in blocks if n not in order]
    yield "U-Net", {"": pipe.unet} | {n: blocks[n] for n in order if blocks.get(n) is not None}
    yield "autoencoder's decoder", {"": pipe.vae.decoder}


class _Clock:
    """Takes the time of networks and of their blocks, less what `spent` says was spent on watching."""

    def __init__(self, wait: Callable[[], None], spent: Callable[[], float]) -> None:
        self._wait, self._spent = wait, spent
        self._found: dict[tuple[str, str], dict[str, Any]] = {}

    @contextmanager
    def on(self, part: str, blocks: dict[str, Any]) -> Iterator[None]:
        hooks = []
        for name, module in blocks.items():
            one = {"module": module, "seconds": 0.0, "runs": 0, "shape": (), "whole": blocks.get("")}
            self._found[part, name] = one
            hooks += [module.register_forward_pre_hook(self._start(one)), module.register_forward_hook(self._stop(one))]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _now(self) -> float:
        self._wait()
        return time.perf_counter() - self._spent()

    def _start(self, one: dict[str, Any]) -> Callable[..., None]:
        def start(*_: Any) -> None:
            one["began"] = self._now()

        return start

    def _stop(self, one: dict[str, Any]) -> Callable[..., None]:
        def stop(_: Any, __: Any, out: Any) -> None:
            one["seconds"] += self._now() - one["began"]
            one["runs"] += 1
            one["shape"] = _shape(out)

        return stop

    def blocks(self) -> Iterator[Block]:
        """Yield the blocks; a network that has none of its own is one, and what blocks leave of theirs is one more."""
        parts = {part for part, _ in self._found}
        for part in sorted(parts, key=[part for part, _ in self._found].index):
            mine = {name: one for (of, name), one in self._found.items() if of == part}
            whole = mine.pop("")
            made = [_block(part, name, one) for name, one in mine.items() if one["runs"]]
            if not made:
                if whole["runs"]:
                    yield _block(part, part, whole)
                continue
            yield from made
            rest = max(0.0, whole["seconds"] - sum(block.seconds for block in made))
            parameters = _parameters(whole["module"]) - sum(block.parameters for block in made)
            yield Block(
                part=part, name=f"rest of the {part}", kind="", parameters=parameters, seconds=rest, runs=whole["runs"],
                shape=whole["shape"],
            )  # fmt: skip


def _block(part: str, name: str, one: dict[str, Any]) -> Block:
    module = one["module"]
    return Block(
        part=part, name=name, kind=type(module).__name__, parameters=_parameters(module), seconds=one["seconds"],
        runs=one["runs"], shape=one["shape"],
    )  # fmt: skip


def _parameters(module: Any) -> int:
    return sum(p.numel() for p in module.parameters())


def _shape(out: Any) -> tuple[int, ...]:
    """Return the shape of what a module gives out, of one of the pack."""
    while not hasattr(out, "shape"):
        out = out[0]
    return tuple(out.shape[1:])


# Words


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A token: its text, its number in the vocabulary, its weight, and its place among the embeddings."""

    text: str
    id: int
    weight: float
    position: int


@dataclass(frozen=True, kw_only=True)
class Word:
    """A word: its text, and the places of its tokens among the embeddings."""

    text: str
    positions: tuple[int, ...]

    @property
    def speaks(self) -> bool:
        """Whether it is more than punctuation: a word, a number or an emoji."""
        return any(c.isalnum() or unicodedata.category(c) == "So" for c in self.text)


@dataclass(frozen=True, kw_only=True)
class Words:
    """How a prompt was read: its chunks of tokens, whether some of them are only bytes of a character, its words, what was cut;
    for each word the cosine of its embedding's angle
    with each other's, NumPy (words, words); how wide embeddings are, and until which step (None: the last) these words held."""

    chunks: tuple[tuple[Seen, ...], ...]
    in_bytes: bool
    words: tuple[Word, ...]
    cut: str
    limit: int
    vocabulary: int
    similarity: Any
    width: int
    until: int | None


def words(pipeline: Pipeline, request: GenerationRequest) -> Words:
    """Read a prompt as the pass that was just drawn did; of one whose words change the first ones.

    Models with two encoders have one set of tokens: both tokenizers cut alike.
    """
    import torch

    encoder = pipeline.encoder
    assert encoder is not None
    how, many = syntax.how(request, pipeline.family), steps(pipeline, request)
    text = syntax.texts(request.prompt, how.syntax, many)[0]
    read = encoder.reader.read(text, syntax=how.syntax, long=how.long)
    encoded = encoder.encode(request.prompt, syntax=how.syntax, long=how.long, clip_skip=request.clip_skip, steps=many)
    long = encoder.reader.limit + 2
    chunks = tuple(
        tuple(Seen(text=t.text, id=t.id, weight=t.weight, position=c * long + 1 + i) for i, t in enumerate(chunk))
        for c, chunk in enumerate(read.chunks)
    )
    tokenizer = getattr(pipeline.pipe, encoder.reader.name)
    found = tuple(word for chunk in chunks for word in _joined(chunk, tokenizer))
    in_bytes = any("\N{REPLACEMENT CHARACTER}" in tokenizer.decode([t.id]) for chunk in chunks for t in chunk)
    embeds = encoded.at(1)[0][0].float().cpu()
    means = [embeds[list(word.positions)].mean(0) for word in found]
    unit = torch.nn.functional.normalize(torch.stack(means), dim=1) if means else torch.zeros((0, 1))
    return Words(
        chunks=chunks, in_bytes=in_bytes, words=found, cut=read.cut, limit=encoder.reader.limit, vocabulary=len(tokenizer),
        similarity=(unit @ unit.T).numpy(), width=embeds.shape[1],
        until=encoded.schedule[0][0] if encoded.changes else None,
    )  # fmt: skip


def _joined(chunk: Sequence[Seen], tokenizer: Any) -> Iterator[Word]:
    """Yield the words that a chunk's tokens spell."""
    names = tokenizer.convert_ids_to_tokens([token.id for token in chunk])
    added, held, first = tokenizer.added_tokens_encoder, list[Seen](), ""
    for at, (token, name) in enumerate(zip(chunk, names, strict=True)):
        first = first if held else name
        held.append(token)
        goes_on = names[at + 1] == f"{first}_{len(held)}" if name in added and at + 1 < len(names) else None
        if goes_on if goes_on is not None else not (name.endswith(WORD_END) or name in added or at + 1 == len(names)):
            continue
        spelled = held[0].text if name in added else "".join(one.text for one in held)
        if not spelled.isascii() and len(held) > 1:
            # Several tokens can be bytes of one character, each of which stands for all of it.
            spelled = str(tokenizer.decode([one.id for one in held])).strip() or spelled
        yield Word(text=spelled, positions=tuple(one.position for one in held))
        held = []


# Noise


def training(pipeline: Pipeline) -> tuple[list[float], list[float]]:
    """Return signal and sigma at each of the timesteps that the model was trained on, from 0: signal^2 + sigma^2 = 1."""
    own = schedulers.build(schedulers.find("ddpm"), pipeline.own_scheduler.config, [0])
    left = own.alphas_cumprod.double()
    return left.sqrt().tolist(), (1 - left).sqrt().tolist()


@dataclass(frozen=True, kw_only=True)
class Noised:
    """A picture with the noise of one timestep: x_t = signal * x_0 + sigma * noise; the root mean square of x_0, of the noise
    and of x_t, and the mean of x_0 * noise, from which the last follows."""

    timestep: int
    signal: float
    sigma: float
    rms_clean: float
    rms_noise: float
    mean_product: float
    rms: float
    picture: Image


def noised(pipeline: Pipeline, image: Image, timesteps: Sequence[int], seed: int) -> list[Noised]:
    """Return a picture (RGB) noised to several levels, as in training (arXiv 2006.11239, equation 4), and decoded."""
    import torch

    signals, sigmas = training(pipeline)
    clean = _encode(pipeline, image)
    noise = torch.randn(clean.shape, generator=torch.Generator("cpu").manual_seed(seed))
    mixed = [signals[t] * clean + sigmas[t] * noise for t in timesteps]
    return [
        Noised(
            timestep=t, signal=signals[t], sigma=sigmas[t], rms_clean=rms(clean), rms_noise=rms(noise),
            mean_product=float((clean * noise).mean()), rms=rms(one), picture=picture,
        )
        for t, one, picture in zip(timesteps, mixed, decode(pipeline, mixed), strict=True)
    ]  # fmt: skip


# The autoencoder


@dataclass(frozen=True, kw_only=True)
class Autoencoded:
    """A picture through the autoencoder and back: its latent's channels, NumPy (channels, height, width), at the size that the
    network knows, and the picture that is made of them."""

    channels: Any
    picture: Image


def autoencoded(pipeline: Pipeline, image: Image) -> Autoencoded:
    """Encode a picture (RGB) and decode it again."""
    latent = _encode(pipeline, image)
    return Autoencoded(channels=latent.numpy(), picture=decode(pipeline, [latent])[0])


def decode(pipeline: Pipeline, latents: Sequence[Any]) -> list[Image]:
    """Return the pictures (Pillow, RGB) of latents (channels, height / 8, width / 8)."""
    import torch

    made: list[Image] = []
    if not latents:
        return made
    pixels = latents[0][0].numel() * pipeline.pipe.vae_scale_factor**2
    many = max(1, min(LATENTS_AT_ONCE, PIXELS_AT_ONCE // pixels))
    factor, shift = scaling(pipeline.pipe.vae)
    with torch.no_grad(), _autoencoder(pipeline) as vae:
        for at in range(0, len(latents), many):
            own = torch.stack([*latents[at : at + many]]) / factor + shift
            pack = own.to(pipeline.pipe._execution_device, vae.dtype)
            values = vae.decode(pack, return_dict=False)[0].float().nan_to_num()
            made += pipeline.pipe.image_processor.postprocess(values, output_type="pil")
    return made


def _encode(pipeline: Pipeline, image: Image) -> Any:
    """Return a picture's latent (channels, height / 8, width / 8), the mean of what the encoder gives."""
    import torch

    pixels = pipeline.pipe.image_processor.preprocess(image)
    factor, shift = scaling(pipeline.pipe.vae)
    with torch.no_grad(), _autoencoder(pipeline) as vae:
        found = vae.encode(pixels.to(pipeline.pipe._execution_device, vae.dtype)).latent_dist.mode()
        return ((found.float().cpu() - shift) * factor)[0]


@contextmanager
def _autoencoder(pipeline: Pipeline) -> Iterator[Any]:
    """Give the autoencoder in the precision that it needs (SDXL's overflows in fp16), and let it go again."""
    vae = pipeline.pipe.vae
    try:
        with widened(vae, vae.config.force_upcast):
            yield vae
    finally:
        if pipeline.offload != "none":
            pipeline.pipe.maybe_free_model_hooks()
