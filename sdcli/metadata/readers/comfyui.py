"""ComfyUI: the graph of nodes that was run, in PNG `prompt`, in WebP's EXIF `Model` as `prompt:{json}`.

Source: Comfy-Org/ComfyUI, nodes.py, comfy_extras/ (nodes_custom_sampler, nodes_clip_sdxl, nodes_flux, nodes_sd3,
nodes_primitive, nodes_string), comfy_api/latest/_ui.py (where it is written), comfy/samplers.py (names). Nodes that
others made are read where their inputs have the same names.

The graph is followed from the picture's end: from the nodes that save to the nearest sampler, from it to its texts, its
size and its model. Where several samplers are equally near, what they do not agree on is named and not chosen between.
A LoRA is taken where it works on the model and on the encoders of all texts, with the same strength.
Left unmapped: `stop_at_clip_layer`, which counts from another layer for SDXL than for SD 1, and nothing in the graph
says which of them the model is; what several conditionings are weighted by; `guidance` of distilled models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sdcli.metadata.readers import Said, Saying, Texts, Unreadable, comfy_scheduler, json_object

ORDER = 50

# Tags that programs write the graph into; ComfyUI takes Model.
TAGS = ("Model", "Make", "ImageDescription", "UserComment")
SAVERS = ("SaveImage", "SaveAnimatedWEBP", "SaveAnimatedPNG", "SaveImageWebsocket")
# Inputs that are texts to be encoded, in the order of diffusers' `prompt`, `prompt_2` ...
ENCODED = ("text", "text_l", "text_g", "clip_l", "clip_g", "t5xxl", "llama", "bert", "mt5xl", "prompt", "user_prompt")
# Inputs of a node that has one value and nothing else to say.
CONSTANTS = (
    "value", "text", "string", "prompt", "positive", "negative", "populated_text", "seed", "noise_seed", "int", "float", "number",
)  # fmt: skip
# Inputs that a latent passes through unchanged in size.
LATENTS = ("samples", "latent_image", "latent")
GUIDER = ("model", "positive", "negative", "cfg", "conditioning", "cond1", "cond2", "cfg_conds", "cfg_cond2_negative")
LOADED = ("ckpt_name", "unet_name", "model_name", "model_path")
DEFAULT_SIGMAS = {"sigma_max": 14.614642, "sigma_min": 0.0291675, "rho": 7.0}
LONGEST = 2**20
MOST_NAMED = 50
# Nodes visited, large ones for more; each of several samplers may lead through all of them.
MOST_STEPS = 100_000

Inputs = Mapping[str, Any]
# A link: a node, and which of its outputs.
Link = tuple[str, int]


def read(texts: Texts) -> Said | None:
    for keyword, text in _candidates(texts):
        values = json_object(text, keyword)
        graph = Graph(values) if values is not None else None
        if graph is not None and graph.nodes:
            return _said(graph)
    return None


def _candidates(texts: Texts) -> Iterator[tuple[str, str]]:
    if "prompt" in texts:
        yield "prompt", texts["prompt"]
    for tag in TAGS:
        if texts.get(tag, "")[:7].lower() == "prompt:":
            yield tag, texts[tag][7:]


class Graph:
    """The nodes by their ids; whatever is no node or no link is not seen. Raises Unreadable for more than MOST_STEPS."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._steps = 0
        dicts = {id: node for id, node in values.items() if isinstance(node, dict)}
        self.nodes = {
            id: node
            for id, node in dicts.items()
            if isinstance(node.get("class_type"), str) and isinstance(node.get("inputs"), dict)
        }

    def kind(self, id: str) -> str:
        return str(self.nodes[id]["class_type"])

    def inputs(self, id: str) -> Inputs:
        inputs: Inputs = self.nodes[id]["inputs"]
        return inputs

    def visit(self, id: str) -> Inputs:
        """Return a node's inputs, and count that they are looked at."""
        inputs = self.inputs(id)
        self._steps += 1 + len(inputs) // 10
        if self._steps > MOST_STEPS:
            raise Unreadable("its graph is too large")
        return inputs

    def link(self, value: object) -> Link | None:
        match value:
            case [str() | int() as id, int(slot)] if str(id) in self.nodes:
                return str(id), slot
        return None

    def links(self, id: str) -> list[tuple[str, Link]]:
        return [(name, link) for name, value in self.visit(id).items() if (link := self.link(value))]

    def walk(self, start: list[str], stop: Callable[[str], bool] = lambda id: False) -> Iterator[str]:
        """Walk up the links, the nearest nodes first, each once; not beyond a node at which to stop."""
        seen = dict.fromkeys(start)
        line = list(seen)
        for id in line:
            yield id
            if stop(id):
                continue
            for _, (up, _) in self.links(id):
                if up not in seen:
                    seen[up] = None
                    line.append(up)

    def follow(self, value: object) -> object:
        """Return a value, through reroutes and nodes that hold a constant; a link where no value is at its end."""
        seen = set()
        while (link := self.link(value)) and link[0] not in seen:
            seen.add(link[0])
            inputs = {k: v for k, v in self.visit(link[0]).items() if k != "control_after_generate"}
            if len(inputs) != 1:
                return inputs.get("populated_text", value)
            ((name, only),) = inputs.items()
            if self.link(only) is None and name not in CONSTANTS:
                return value
            value = only
        return value

    def text(self, value: object, memo: dict[str, str | None] | None = None, depth: int = 0) -> str | None:
        """Return the text that a value is or leads to, None where the graph does not say it."""
        value = self.follow(value)
        if isinstance(value, str):
            return value
        memo = {} if memo is None else memo
        link = self.link(value)
        if link is None or depth > 50:
            return None
        id = link[0]
        inputs = self.visit(id)
        if id not in memo:
            memo[id] = None
            if self.kind(id) == "StringConcatenate":
                parts = [self.text(inputs.get(part), memo, depth + 1) for part in ("string_a", "string_b")]
                between = self.text(inputs.get("delimiter", ""), memo, depth + 1)
                if None not in parts and between is not None:
                    joined = between.join(part for part in parts if part is not None)
                    memo[id] = joined if len(joined) <= LONGEST else None
            elif self.kind(id) == "ShowText|pysssss":
                memo[id] = self.text(inputs.get("text"), memo, depth + 1)
        return memo[id]


def _said(graph: Graph) -> Said:
    samplers = [id for id in graph.nodes if _is_sampler(graph, id)]
    # One that samples over a finished picture (a face, a tile) is passed by.
    nearest = _nearest(graph, {id for id in samplers if "image" not in graph.inputs(id)})
    if not nearest:
        saying = Saying("comfyui")
        saying.name({"nodes": sorted({graph.kind(id) for id in graph.nodes})[:MOST_NAMED]})
        return saying.said()
    read = [_sampler(graph, id) for id in nearest[:MOST_NAMED]]
    saying, model = read[0]
    told: list[dict[str, Any]] = []
    if len(read) > 1:
        alike = {k: v for k, v in saying.request.items() if all(k in o.request and o.request[k] == v for o, _ in read)}
        model = model if all(m == model for _, m in read) else {}
        saying = Saying("comfyui")
        saying.request = alike
        told = [{**_named(graph, id), "request": o.request} for id, (o, _) in zip(nearest, read, strict=False)]
    chosen = set(nearest)
    others = [id for id in samplers if id not in chosen]
    told += [_named(graph, id) for id in others[:MOST_NAMED]]
    saying.name({"samplers": told[:MOST_NAMED]})
    count = len(others) + (len(nearest) if len(read) > 1 else 0)
    if count > MOST_NAMED:
        saying.name({"more samplers": count - MOST_NAMED})
    return saying.said(model)


def _is_sampler(graph: Graph, id: str) -> bool:
    inputs = graph.inputs(id)
    if "guider" in inputs and "sigmas" in inputs:
        return True
    seed = "seed" in inputs or "noise_seed" in inputs
    return seed and "positive" in inputs and ("steps" in inputs or "sigmas" in inputs)


def _nearest(graph: Graph, samplers: set[str]) -> list[str]:
    """Return the samplers that are nearest to the nodes that save: to SaveImage or, without one, to whatever has no reader."""
    kinds = {id: graph.kind(id) for id in graph.nodes}
    ends = [id for id, kind in kinds.items() if kind in SAVERS]
    ends = ends or [id for id, kind in kinds.items() if "save" in kind.lower() and graph.links(id)]
    if not ends:
        read = {up for id in graph.nodes for _, (up, _) in graph.links(id)}
        ends = [id for id in graph.nodes if id not in read]
    return [id for id in graph.walk(ends, samplers.__contains__) if id in samplers]


def _sampler(graph: Graph, id: str) -> tuple[Saying, dict[str, Any]]:
    """Return what a sampler was run with, and its model."""
    saying = Saying("comfyui")
    inputs = dict(graph.visit(id))
    for role, keys in (("noise", ("noise_seed",)), ("guider", GUIDER)):
        if link := graph.link(inputs.pop(role, None)):
            inputs |= {k: v for k, v in graph.inputs(link[0]).items() if k in keys}
            if role == "guider" and graph.kind(link[0]) not in ("CFGGuider", "BasicGuider"):
                saying.name({"guider": graph.kind(link[0])})
    if "conditioning" in inputs:
        inputs["positive"] = inputs.pop("conditioning")
    _take_sampling(graph, saying, inputs)
    for key in ("seed", "noise_seed"):
        _take(graph, saying, "seed", inputs.pop(key, None), key)
    _take(graph, saying, "num_inference_steps", inputs.pop("steps", None), "steps")
    _take(graph, saying, "guidance_scale", inputs.pop("cfg", None), "cfg")
    # Of each text's encoder, the nodes that it comes through.
    clips: list[set[str]] = []
    for side, field in (("positive", "prompt"), ("negative", "negative_prompt")):
        _take_texts(graph, saying, inputs.pop(side, None), side, field, clips)
    _take_size(graph, saying, inputs.pop("latent_image", None))
    model = _model(graph, saying, inputs.pop("model", None), clips)
    if inputs.get("denoise") == 1:
        del inputs["denoise"]
    saying.name({k: v for k, v in inputs.items() if isinstance(v, str | int | float) and k != "control_after_generate"})
    return saying, model


def _take(graph: Graph, saying: Saying, field: str, value: object, name: str) -> None:
    followed = graph.follow(value)
    if link := graph.link(followed):
        saying.name({name: f"from the node {graph.kind(link[0])}"})
    else:
        saying.take(field, followed, name)


def _take_sampling(graph: Graph, saying: Saying, inputs: dict[str, Any]) -> None:
    """Take the sampler and the spacing out of a KSampler's inputs, or out of the nodes that a custom one has for them."""
    names = {key: inputs.pop(key, None) for key in ("sampler_name", "scheduler")}
    if link := graph.link(inputs.pop("sampler", None)):
        kind, of_node = graph.kind(link[0]), graph.inputs(link[0])
        names["sampler_name"] = of_node.get("sampler_name") if kind == "KSamplerSelect" else None
        if kind != "KSamplerSelect":
            saying.name({"sampler": {"class_type": kind, **_scalars(of_node)}})
    if link := graph.link(inputs.pop("sigmas", None)):
        kind, of_node = graph.kind(link[0]), dict(graph.inputs(link[0]))
        inputs["steps"] = of_node.pop("steps", None)
        inputs["denoise"] = of_node.pop("denoise", 1)
        if kind == "BasicScheduler":
            names["scheduler"] = of_node.pop("scheduler", None)
        else:
            plain = kind in ("KarrasScheduler", "ExponentialScheduler")
            plain = plain and all(DEFAULT_SIGMAS.get(k) == v for k, v in _scalars(of_node).items())
            names["scheduler"] = kind.removesuffix("Scheduler").lower() if plain else None
            saying.name({} if plain else {"sigmas": {"class_type": kind, **_scalars(of_node)}})
    names = {k: graph.follow(v) for k, v in names.items()}
    named = {k: v for k, v in names.items() if isinstance(v, str)}
    saying.take_scheduler(comfy_scheduler(names["sampler_name"], names["scheduler"]), named)
    if "scheduler" in saying.request and str(names["sampler_name"]).endswith("_gpu"):
        saying.name({"sampler_name": names["sampler_name"]})


def _take_texts(graph: Graph, saying: Saying, value: object, side: str, field: str, clips: list[set[str]]) -> None:
    """Take the texts of a conditioning, each on lines of its own; what joins or changes it on the way is named."""
    texts: list[str] = []
    passed: list[str] = []
    seen: set[tuple[str, bool]] = set()
    link = graph.link(value)
    stack = [link] if link else []
    while stack:
        id, slot = stack.pop()
        # Nodes with two conditionings have them in the first two outputs.
        if (id, slot == 1) in seen:
            continue
        seen.add((id, slot == 1))
        inputs, kind = graph.visit(id), graph.kind(id)
        if kind == "ConditioningZeroOut":
            passed.append(kind)
            continue
        # Some loaders encode, and have both texts.
        encoded = {k: inputs[k] for k in (*ENCODED, side) if k in inputs and (k != side or isinstance(inputs[k], str))}
        ups = _conditionings(graph, id, side, slot)
        if encoded and not ups:
            texts += _encoded(graph, saying, side, encoded)
            saying.name({"guidance": inputs.get("guidance")})
            clips.append(_follow_clip(graph, saying, inputs.get("clip")))
            continue
        if len(inputs) > 1:
            passed.append(kind)
        if kind == "FluxGuidance":
            saying.name({"guidance": inputs.get("guidance")})
        if not ups:
            saying.name({f"{side} text": f"from the node {kind}"})
        stack += reversed(ups)
    if texts and sum(map(len, texts)) <= LONGEST:
        text = "\n".join(dict.fromkeys(texts))
        saying.take(field, text or None if side == "negative" else text, side)
    saying.name({f"{side} conditioning": [k for k in dict.fromkeys(passed) if k != "FluxGuidance"][:MOST_NAMED]})


def _follow_clip(graph: Graph, saying: Saying, value: object) -> set[str]:
    """Return the nodes between a text and its encoder's loader; name the layer at which they let CLIP end."""
    seen: set[str] = set()
    while (link := graph.link(value)) and link[0] not in seen:
        seen.add(link[0])
        inputs = graph.visit(link[0])
        saying.name({"stop_at_clip_layer": inputs.get("stop_at_clip_layer")})
        reroute = len(inputs) == 1 and "clip" not in inputs
        value = next(iter(inputs.values())) if reroute else inputs.get("clip")
    return seen


def _conditionings(graph: Graph, id: str, side: str, slot: int) -> list[Link]:
    """Return the conditionings that a node makes its own of. One with two of them, as for ControlNet, gives out both."""
    links = dict(graph.links(id))
    if "positive" in links and "negative" in links:
        return [links["negative" if slot == 1 else "positive"]]
    if len(graph.inputs(id)) == 1:  # A reroute.
        return list(links.values())
    # Concat and Average put `from` behind `to`.
    named = [name for name in links if name.startswith(("conditioning", "cond", side))]
    return [links[name] for name in sorted(named, key=lambda name: name.endswith("_from"))]


def _encoded(graph: Graph, saying: Saying, side: str, encoded: Mapping[str, object]) -> list[str]:
    """Return the text of a node that encodes, the first of several encoders' where they differ; the others are named."""
    found: dict[str, str] = {}
    for key, value in encoded.items():
        text = graph.text(value)
        if text is None:
            link = graph.link(graph.follow(value))
            saying.name({f"{side} {key}": f"from the node {graph.kind(link[0])}" if link else value})
        else:
            found[key] = text
    if not found:
        return []
    first = next((key for key, text in found.items() if text.strip()), next(iter(found)))
    saying.name({f"{side} {key}": text for key, text in found.items() if text.strip() and text != found[first]})
    return [found[first]]


def _take_size(graph: Graph, saying: Saying, value: object) -> None:
    """Take the size of an empty latent; what else a picture was drawn from is named."""
    seen = set()
    while (link := graph.link(value)) and link[0] not in seen:
        id = link[0]
        seen.add(id)
        inputs, kind = graph.visit(id), graph.kind(id)
        if "width" in inputs and "height" in inputs and kind.startswith("Empty"):
            for side in ("width", "height"):
                _take(graph, saying, side, inputs[side], side)
            if inputs.get("batch_size", 1) != 1:
                # Which of the batch it is, and so its noise, is not in the picture.
                saying.name({"batch_size": inputs["batch_size"]})
            return
        reroute = len(inputs) == 1 and graph.links(id)
        if not reroute and kind != "RepeatLatentBatch":
            saying.name({"latent_image": f"from the node {kind}"})
            return
        value = next((inputs[k] for k in LATENTS if k in inputs), reroute and next(iter(inputs.values())))


def _model(graph: Graph, saying: Saying, value: object, clips: list[set[str]]) -> dict[str, Any]:
    """Walk to the loader, and take the LoRAs on the way; whatever else changes the model is named.

    `clips` are the nodes that each text's encoder comes through.
    """
    loras: list[tuple[object, object, object]] = []
    patches: list[str] = []
    name: object = None
    seen: set[str] = set()
    while (link := graph.link(value)) and link[0] not in seen:
        id = link[0]
        seen.add(id)
        inputs = graph.visit(id)
        name = next((graph.follow(inputs[k]) for k in LOADED if k in inputs), None)
        if name is not None:
            break
        found = list(_loras(graph, inputs))
        whole = bool(clips) and all(id in clip for clip in clips)
        loras += [(lora, scale if whole else None, how) for lora, scale, how in found]
        if not found and len(inputs) > 1:
            patches.append(graph.kind(id))
        value = inputs.get("model", next(iter(inputs.values())) if len(inputs) == 1 else None)
    for id in sorted(set().union(*clips) - seen):
        loras += [(lora, None, how) for lora, _, how in _loras(graph, graph.inputs(id))]
    saying.take_loras(loras[:MOST_NAMED], "loras")
    saying.name({"model patches": list(dict.fromkeys(patches))[:MOST_NAMED]})
    return {"name": name if isinstance(name, str) else None, "hash": None}


def _loras(graph: Graph, inputs: Inputs) -> Iterator[tuple[object, object, object]]:
    """Yield the LoRAs of a node: name, strength (None: of the model and of the encoder not the same), and what it says."""
    if "lora_name" in inputs:
        how = {k: v for k, v in inputs.items() if k == "lora_name" or k.startswith("strength")}
        # A loader for the model alone has neither strength for the encoder nor the encoder.
        model, clip = (graph.follow(inputs.get(k)) for k in ("strength_model", "strength_clip"))
        yield graph.follow(inputs["lora_name"]), _number(model) if model == clip else None, how
    # rgthree's loader of several.
    for key, said in inputs.items():
        if key.startswith("lora_") and isinstance(said, dict) and said.get("on", True):
            model, clip = said.get("strength"), said.get("strengthTwo")
            yield said.get("lora"), _number(model) if clip is None or clip == model else None, said


def _number(value: object) -> object:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _scalars(inputs: Inputs) -> dict[str, Any]:
    return {k: v for k, v in inputs.items() if isinstance(v, str | int | float)}


def _named(graph: Graph, id: str) -> dict[str, Any]:
    return {"node": id, "class_type": graph.kind(id), **_scalars(graph.inputs(id))}
