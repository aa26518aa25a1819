"""Adapters on a loaded model: diffusers' own loaders put them on, and take them off again."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sdcli.errors import BadInput, OutOfMemory, SdcliError, UsageError
from sdcli.models import Model
from sdcli.models import adapters as files
from sdcli.models.adapters import Found, Kind, in_force
from sdcli.models.hub import Say
from sdcli.models.weights import check_weights, read_header
from sdcli.pipeline.machine import align, out_of_memory, quiet
from sdcli.request import Adapter, GenerationRequest

FIELDS: tuple[Kind, ...] = ("embedding", "lora", "ip_adapter", "controlnet")


class Adapters:
    """The adapters of a loaded pipeline of diffusers: before a pack is drawn, `apply` makes them those of its request.

    What was taken off leaves nothing behind: the model draws, bit for bit, what it drew before. At scale 0 an adapter is not
    put on at all.
    """

    def __init__(self, pipe: Any, model: Model, folders: Sequence[Path] = (), say: Say = quiet) -> None:
        self.pipe, self.model, self.folders, self.say = pipe, model, tuple(folders), say
        # By kind: what is asked for, the records of it, and the hashes that are on the pipe in their order.
        self._asked: dict[Kind, tuple[Adapter, ...]] = dict.fromkeys(FIELDS, ())
        self._told: dict[Kind, tuple[dict[str, Any], ...]] = dict.fromkeys(FIELDS, ())
        self._hashes: dict[Kind, tuple[str, ...]] = dict.fromkeys(FIELDS, ())
        self._loras: dict[str, str] = {}
        self._trained: list[Any] = []
        self._tokens: dict[str, int] = {}
        self._vocabulary: list[tuple[Any, Any, int]] = []
        self._networks: dict[str, Any] = {}
        self._controls: list[Any] = []
        self._base_attention: dict[str, Any] | None = None
        self._lent: tuple[str, ...] = ()

    def apply(self, request: GenerationRequest) -> tuple[dict[str, Any], ...]:
        """Put on what the request asks for and take off all else; return what records keep of what is on.

        Those are `kind`, `name`, `scale`, `sha256`, `commit`, `image` and `token`. Files that are on the hub only are downloaded.
        Raises what `models.adapters.find`, `fetch` and `check` raise, and BadInput for a file that can't be loaded.
        """
        put = {
            "embedding": self._embed,
            "lora": self._put_loras,
            "ip_adapter": self._put_ip,
            "controlnet": self._put_nets,
        }
        for kind in FIELDS:
            wanted = in_force(getattr(request, kind))
            # What fails here leaves what is on as it is. A file may have changed under its name.
            found = [files.ready(kind, adapter, self.folders, self.say) for adapter in wanted]
            hashes = tuple(files.sha256(one) for one in found)
            if wanted == self._asked[kind] and hashes == self._hashes[kind]:
                continue
            for one in found:
                files.check(kind, one, self.model)
            # Until all of it is on, nothing is promised: what fails midway is taken off and tried anew the next time.
            self._asked[kind] = self._told[kind] = self._hashes[kind] = ()
            try:
                with _silently():
                    put[kind](found)
            except BaseException:
                put[kind]([])
                raise
            self._asked[kind], self._hashes[kind] = wanted, hashes
            self._told[kind] = tuple(self._record(kind, one) for one in found)
        return tuple(told for kind in FIELDS for told in self._told[kind])

    def changes(self, request: GenerationRequest) -> bool:
        """Whether `apply` would put something on or take something off."""
        return any(in_force(getattr(request, kind)) != self._asked[kind] for kind in FIELDS)

    @property
    def sliceable(self) -> bool:
        """Whether attention may be sliced: an IP-Adapter's can't be, and slicing would throw it out."""
        return self._base_attention is None

    def _record(self, kind: Kind, found: Found) -> dict[str, Any]:
        pin = files.pin(found)
        return {
            "kind": kind, "name": pin.name, "scale": pin.scale, "sha256": pin.sha256, "commit": pin.commit,
            "image": pin.image, "token": pin.token,
        }  # fmt: skip

    @property
    def encoding(self) -> tuple[Any, ...]:
        """What an encoded prompt depends on: the same value stands for the same words' embeddings."""
        return tuple((self._asked[kind], self._hashes[kind]) for kind in ("lora", "embedding"))

    @property
    def tokens(self) -> dict[str, int]:
        """The words of the embeddings that are on, and how many vectors each has: WORD, WORD_1, WORD_2 ... in the tokenizer."""
        return dict(self._tokens)

    def controlnets(self, request: GenerationRequest) -> list[Any]:
        """Return the networks of the request's ControlNets, in the order of `in_force(request.controlnet)`."""
        assert in_force(request.controlnet) == self._asked["controlnet"], "they are put on by `apply`"
        return list(self._controls)

    # Embeddings (textual inversion, arXiv 2208.01618)

    def _embed(self, found: Sequence[Found]) -> None:
        """Teach the tokenizers and text encoders the words, all anew."""
        from safetensors.torch import load_file

        for tokenizer, encoder, size in self._vocabulary:
            words = [w for token, count in self._tokens.items() for w in _words(token, count)]
            words = [w for w in words if w in tokenizer.added_tokens_encoder]
            if words:
                self.pipe.unload_textual_inversion(words, tokenizer, encoder)
            encoder.config.vocab_size = size
        self._vocabulary, self._tokens = [], {}
        if not found:
            return
        parts = {p: p.replace("text_encoder", "tokenizer") for p in ("text_encoder", "text_encoder_2")}
        parts = {p: t for p, t in parts.items() if p in self.model.components}
        self._vocabulary = [
            (getattr(self.pipe, t), getattr(self.pipe, p), getattr(self.pipe, p).config.vocab_size)
            for p, t in parts.items()
        ]
        for one in found:
            token, count = files.embedding_vectors(one)
            for word in _words(token, count):
                if any(word in tokenizer.get_vocab() for tokenizer, _, _ in self._vocabulary):
                    raise UsageError(
                        f"{one.name} can't be called {token}: {self.model.name} knows {word} already",
                        "give it another word: --embedding FILE=WORD",
                    )
            self._tokens[token] = count
            with _as_bad_input(one, self.model):
                tensors = load_file(_path(one))
                for part, key in files.embedding_keys(one).items():
                    self.pipe.load_textual_inversion(
                        tensors[key], token=token, tokenizer=getattr(self.pipe, parts[part]),
                        text_encoder=getattr(self.pipe, part),
                    )  # fmt: skip

    # LoRA (arXiv 2106.09685)

    def _put_loras(self, found: Sequence[Found]) -> None:
        """Load what is new, delete what is not asked for, and set the weights."""
        weights: dict[str, float] = {}
        for one in found:
            sha256 = files.sha256(one)
            weights[sha256] = weights.get(sha256, 0.0) + one.adapter.scale
        gone = [name for sha256, name in self._loras.items() if sha256 not in weights]
        if gone and len(gone) < len(self._loras):
            self.pipe.delete_adapters(gone)
        elif gone:
            self.pipe.unload_lora_weights()
            # peft has marked all weights as not to be trained, and some kernels of the CPU go by that mark.
            for weight in self._trained:
                weight.requires_grad_(True)
            self._trained = []
        self._loras = {s: n for s, n in self._loras.items() if n not in gone}
        if found and not self._loras:
            self._trained = [w for part in self._lora_parts() for w in part.parameters() if w.requires_grad]
        for one in found:
            sha256 = files.sha256(one)
            if sha256 not in self._loras:
                # Known before it is loaded, so that half of one is taken off again.
                self._loras[sha256] = name = f"lora_{sha256[:16]}"
                self._load_lora(one, name)
        if weights:
            # In the order that was asked for: sums of floating-point numbers depend on it.
            self.pipe.set_adapters([self._loras[s] for s in weights], adapter_weights=list(weights.values()))

    def _load_lora(self, found: Found, name: str) -> None:
        state = _mended(_path(found))
        with _as_bad_input(found, self.model):
            # Not straight out of the file's mapping: the weights' addresses would decide bits.
            self.pipe.load_lora_weights(
                state, adapter_name=name, use_safetensors=True, local_files_only=True,
                low_cpu_mem_usage=False,
            )  # fmt: skip
        keys = list(state if isinstance(state, dict) else read_header(Path(state)))
        there, put = len(files.lora_layers(keys)), self._count_lora(name)
        if not put:
            raise BadInput(f"no key of {found.name} fits {self.model.name}", "use a LoRA that was made for this model")
        assert self.model.family is not None
        if self.model.family.denoiser == "unet" and put < there:
            self.say(
                f"{found.name}: {there - put} of its {there} layers fit nothing in {self.model.name} and were left out"
            )
        if any("dora_scale" in key for key in keys):
            self.say(
                f"{found.name} is a DoRA: diffusers leaves its magnitudes out, and it draws otherwise than it was trained"
            )

    def _lora_parts(self) -> list[Any]:
        """Return the networks that a LoRA may change."""
        parts = (getattr(self.pipe, part, None) for part in self.pipe._lora_loadable_modules)
        return [part for part in parts if part is not None]

    def _count_lora(self, name: str) -> int:
        """Return how many layers of the model a LoRA was put on."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        layers = (m for part in self._lora_parts() for m in part.modules() if isinstance(m, BaseTunerLayer))
        return sum(any(name in getattr(layer, kind, ()) for kind in layer.adapter_layer_names) for layer in layers)

    # IP-Adapters (arXiv 2308.06721)

    def _put_ip(self, found: Sequence[Found]) -> None:
        """Load all anew, with the image encoder that they read."""
        if self._base_attention is not None:
            self._take_ip_off()
        if not found:
            return
        unet = self.pipe.unet
        if any("Sliced" in type(p).__name__ for p in unet.attn_processors.values()):
            raise UsageError("an IP-Adapter can't be used while attention is sliced", "use --attention-slicing off")
        encoders = {files.encoder_of(one) for one in found}
        if len(encoders) > 1:
            raise UsageError("these IP-Adapters read different image encoders", "use those of one encoder together")
        self._base_attention = dict(unet.attn_processors)
        self._lent = tuple(p for p in ("image_encoder", "feature_extractor") if getattr(self.pipe, p, None) is None)
        with _as_bad_input(found[0], self.model):
            if "image_encoder" in self._lent:
                self.pipe.register_modules(image_encoder=self._load_encoder(encoders.pop()))
            paths = [Path(_path(one)) for one in found]
            self.pipe.load_ip_adapter(
                [str(p.parent) for p in paths], subfolder=[""] * len(paths), weight_name=[p.name for p in paths],
                image_encoder_folder=None, local_files_only=True, low_cpu_mem_usage=False,
            )  # fmt: skip
            self.pipe.set_ip_adapter_scale([one.adapter.scale for one in found])

    def _load_encoder(self, folder: Path) -> Any:
        """Load an image encoder; diffusers would take a pickle where there is nothing else."""
        from transformers import CLIPVisionModelWithProjection

        encoder, told = CLIPVisionModelWithProjection.from_pretrained(
            folder, dtype=self.pipe.unet.dtype, variant=check_weights(folder, [""]), use_safetensors=True,
            local_files_only=True, output_loading_info=True,
        )  # fmt: skip
        if missing := sorted(told["missing_keys"]):
            raise BadInput(f"{folder} lacks weights ({len(missing)}; the first is {missing[0]})", "fetch it again")
        align(encoder)
        return encoder.to(self.pipe._execution_device).eval()

    def _take_ip_off(self) -> None:
        assert self._base_attention is not None
        self.pipe.unload_ip_adapter()
        # It sets what it takes for the usual processors, and leaves Stable Diffusion the feature extractor.
        self.pipe.unet.set_attn_processor(dict(self._base_attention))
        self.pipe.register_modules(**dict.fromkeys(self._lent))
        self._base_attention, self._lent = None, ()

    # ControlNets (arXiv 2302.05543)

    def _put_nets(self, found: Sequence[Found]) -> None:
        """Load what is new and let go of what is not asked for."""
        wanted = [files.sha256(one) for one in found]
        self._networks = {s: n for s, n in self._networks.items() if s in wanted}
        for sha256, one in zip(wanted, found, strict=True):
            if sha256 not in self._networks:
                with _as_bad_input(one, self.model):
                    self._networks[sha256] = self._load_net(one)
        self._controls = [self._networks[s] for s in wanted]

    def _load_net(self, found: Found) -> Any:
        from diffusers import ControlNetModel

        path, dtype = Path(_path(found)), self.pipe.unet.dtype
        if path.is_dir():
            net, told = ControlNetModel.from_pretrained(
                path, dtype=dtype, variant=found.variant, use_safetensors=True, local_files_only=True,
                output_loading_info=True,
            )  # fmt: skip
            missing = sorted(told["missing_keys"])
        else:
            # A file says nothing of its shape: a ControlNet is a copy of the half of the U-Net that it was made for.
            with tempfile.TemporaryDirectory(prefix="sdcli-") as folder:
                _control_config(self.pipe.unet, folder)
                net = ControlNetModel.from_single_file(str(path), config=folder, dtype=dtype, local_files_only=True)
            missing = [name for name, p in net.named_parameters() if p.is_meta]
        if missing:
            raise BadInput(
                f"{found.name} lacks weights ({len(missing)}; the first is {missing[0]})", "fetch the file again"
            )
        align(net)
        return net.to(self.pipe._execution_device).eval()


@contextmanager
def _silently() -> Iterator[None]:
    """Keep the libraries from telling of their next versions, and of errors that are told anyway."""
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)


def _path(found: Found) -> str:
    assert found.path is not None
    return str(found.path)


def _words(token: str, count: int) -> list[str]:
    """Return what diffusers calls the vectors of an embedding in the tokenizer."""
    return [token, *(f"{token}_{i}" for i in range(1, count))]


def _control_config(unet: Any, folder: str) -> None:
    """Write the configuration of a ControlNet for this U-Net; its weights take no memory."""
    import torch
    from diffusers import ControlNetModel

    with torch.device("meta"):
        ControlNetModel.from_unet(unet, load_weights_from_unet=False).save_config(folder)


@contextmanager
def _as_bad_input(found: Found, model: Model) -> Iterator[None]:
    """Turn what the libraries raise for a file that is not what it says into BadInput; it has no common base."""
    try:
        yield
    except (SdcliError, OutOfMemory):
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:300]
        raise BadInput(
            f"{found.name} can't be loaded onto {model.name}: {reason}",
            "fetch it again, or use one made for this model",
        ) from error


# Files of kohya's trainer, as diffusers misreads them

_KOHYA = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_")


def _mended(path: str) -> str | dict[str, Any]:
    """Return a LoRA's file as it is, or where diffusers would misread it what it reads rightly.

    Of kohya's layout it takes one alpha for all layers (its names for the others meet no layer), and a text encoder without
    `out_proj` it does not recognize. Alphas that differ are multiplied into the weights; a layer of zeros is added.
    """
    from safetensors.torch import load_file

    keys = [k for k in read_header(Path(path)) if k != "__metadata__"]
    if not all(k.startswith(_KOHYA) for k in keys):
        return path
    state: dict[str, Any] = load_file(path)
    changed = _fold_alphas(state) | _add_projections(state)
    return state if changed else path


def _fold_alphas(state: dict[str, Any]) -> bool:
    alphas = {k.removesuffix(".alpha"): float(v) for k, v in state.items() if k.endswith(".alpha")}
    layers = [k.removesuffix(".lora_down.weight") for k in state if k.endswith(".lora_down.weight")]
    if not alphas or (len(set(alphas.values())) == 1 and all(layer in alphas for layer in layers)):
        return False
    for layer, alpha in alphas.items():
        del state[layer + ".alpha"]
        down, up = state.get(layer + ".lora_down.weight"), layer + ".lora_up.weight"
        if down is not None and up in state:
            state[up] = (state[up].float() * (alpha / down.shape[0])).to(state[up].dtype)
    return True


def _add_projections(state: dict[str, Any]) -> bool:
    added: dict[str, Any] = {}
    for prefix in _KOHYA[1:]:
        own = [k for k in state if k.startswith(prefix) and "_self_attn_" in k]
        if own and not any("_out_proj." in k for k in own):
            first = own[0].partition("_self_attn_")[0] + "_self_attn_"
            layer = next(k for k in own if k.startswith(first)).partition(".")[0]
            added |= {
                f"{first}out_proj.{end}": state[k].clone().zero_() if not k.endswith(".alpha") else state[k]
                for k in own
                if k.partition(".")[0] == layer
                for end in (k.partition(".")[2],)
            }
    state |= added
    return bool(added)
