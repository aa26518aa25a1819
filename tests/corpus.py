"""Small pictures as other programs write them, made out of their formats' published descriptions, and what each says.

Each container is put together here and not by sdcli, in the way in which the program that is imitated does it.
"""

from __future__ import annotations

import gzip
import io
import json
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from xml.sax.saxutils import escape

from PIL import Image
from PIL.PngImagePlugin import PngInfo

PICTURE = Image.linear_gradient("L").resize((64, 48)).convert("RGB")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A picture's file and what is to be found in it; `source` is where its format is described."""

    name: str
    ending: str
    format: str
    source: str
    make: Callable[[], bytes]
    request: Mapping[str, Any]
    model: Mapping[str, Any] | None = None
    unmapped: Mapping[str, Any] = field(default_factory=dict)


# Containers


def png(texts: Mapping[str, str], exif: bytes | None = None, image: Image.Image = PICTURE, itxt: bool = False) -> bytes:
    """Texts as Pillow writes them, and so most programs: tEXt where Latin-1 holds it, else iTXt."""
    info = PngInfo()
    for keyword, text in texts.items():
        (info.add_itxt if itxt else info.add_text)(keyword, text)
    return saved(image, "PNG", pnginfo=info, **({"exif": exif} if exif else {}))


def saved(image: Image.Image, kind: str, **more: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **more)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_chunks(*chunks: bytes, image: Image.Image = PICTURE) -> bytes:
    """A PNG with chunks put in behind IHDR."""
    data = saved(image, "PNG")
    return data[:33] + b"".join(chunks) + data[33:]


def user_comment(value: bytes) -> bytes:
    """EXIF with a UserComment of type UNDEFINED, as piexif and A1111 write it."""
    tiff = b"MM\0*" + struct.pack(">I", 8)
    tiff += struct.pack(">HHHIII", 1, 0x8769, 4, 1, 26, 0)
    tiff += struct.pack(">HHHIII", 1, 0x9286, 7, len(value), 44, 0)
    return b"Exif\0\0" + tiff + value


def unicode_comment(text: str) -> bytes:
    return user_comment(b"UNICODE\0" + text.encode("utf-16-be"))


def ifd0(tags: Mapping[int, str]) -> bytes:
    """EXIF as Pillow writes it, all of it in the first directory."""
    exif = Image.Exif()
    for tag, text in tags.items():
        exif[tag] = text
    return exif.tobytes()


def jpeg_segments(*segments: tuple[int, bytes]) -> bytes:
    """A JPEG with segments put in behind its first marker."""
    data = saved(PICTURE, "JPEG")
    put = b"".join(struct.pack(">BBH", 0xFF, code, len(content) + 2) + content for code, content in segments)
    return data[:2] + put + data[2:]


def xmp_packet(namespaces: str, content: str) -> str:
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about="" {namespaces}>{content}</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    )


def hidden(name: bytes, data: bytes, bits: int | None = None) -> Image.Image:
    """A picture with bytes in the lowest bits of its alpha channel, column by column (nai_meta_writer.py)."""
    image = Image.linear_gradient("L").resize((96, 96)).convert("RGBA")
    payload = name + struct.pack(">I", len(data) * 8 if bits is None else bits) + data
    digits = "".join(f"{byte:08b}" for byte in payload)
    assert len(digits) <= 96 * 96
    alpha = [255] * (96 * 96)
    for i, digit in enumerate(digits):
        column, row = divmod(i, 96)
        alpha[row * 96 + column] = 254 | int(digit)
    image.putalpha(Image.frombytes("L", (96, 96), bytes(alpha)))
    return image


# A1111 and those that write as it does

A1111 = "AUTOMATIC1111/stable-diffusion-webui, modules/processing.py and infotext_utils.py"
FORGE = "lllyasviel/stable-diffusion-webui-forge, modules/processing.py and stealth_infotext.py"
SD_NEXT = "vladmandic/sdnext, modules/processing_info.py"

PLAIN = (
    "a lighthouse at dusk, <lora:sea:0.8>\nNegative prompt: fog\n"
    "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 965400086, Size: 512x768, "
    "Model hash: c0d1994c73, Model: sd15, Clip skip: 2, Version: v1.10.1"
)
PLAIN_REQUEST = {
    "prompt": "a lighthouse at dusk,", "negative_prompt": "fog", "num_inference_steps": 20,
    "scheduler": "dpm++2m-karras", "guidance_scale": 7.0, "seed": 965400086, "width": 512, "height": 768, "clip_skip": 1,
    "lora": [{"name": "sea", "scale": 0.8}],
}  # fmt: skip
PLAIN_MODEL = {"name": "sd15", "hash": "c0d1994c73"}
PLAIN_REST = {"Version": "v1.10.1"}


def a1111(name: str, text: str, request: Mapping[str, Any], **more: Any) -> Sample:
    source = more.pop("source", A1111)
    return Sample(
        name=name, ending="png", format="a1111", source=source, make=lambda: png({"parameters": text}), request=request, **more
    )  # fmt: skip


def a1111_samples() -> list[Sample]:
    same: dict[str, Any] = {
        "format": "a1111", "source": A1111, "request": PLAIN_REQUEST, "model": PLAIN_MODEL, "unmapped": PLAIN_REST,
    }  # fmt: skip
    base = {"prompt": "a cat", "num_inference_steps": 20, "guidance_scale": 7.0, "seed": 1, "width": 512, "height": 512}
    tail = "CFG scale: 7, Seed: 1, Size: 512x512"
    comment = unicode_comment(PLAIN)
    return [
        a1111("a1111", PLAIN, PLAIN_REQUEST, model=PLAIN_MODEL, unmapped=PLAIN_REST),
        Sample(name="a1111-jpg", ending="jpg", make=lambda: saved(PICTURE, "JPEG", exif=comment), **same),
        Sample(name="a1111-webp", ending="webp", make=lambda: saved(PICTURE, "WEBP", exif=comment), **same),
        Sample(name="a1111-avif", ending="avif", make=lambda: saved(PICTURE, "AVIF", exif=comment), **same),
        Sample(
            name="a1111-little-endian", ending="jpg",
            make=lambda: saved(PICTURE, "JPEG", exif=user_comment(b"UNICODE\0" + PLAIN.encode("utf-16-le"))), **same,
        ),
        Sample(
            name="a1111-zlib", ending="png",
            make=lambda: png_chunks(chunk(b"zTXt", b"parameters\0\0" + zlib.compress(PLAIN.encode("latin-1")))), **same,
        ),
        # Values in quotes are JSON: commas, colons, line ends and quotes in them.
        a1111(
            "a1111-quoted",
            "ein Kätzchen, 猫 🐱\n\n  auf der Mauer  \nNegative prompt: a\nb, c: d\n"
            'Steps: 30, Sampler: Euler a, Schedule type: Automatic, CFG scale: 6.5, Seed: 0, Size: 640x512, Model: "a, b: c", '
            'Hires prompt: "one,\\ntwo: \\"three\\"", Lora hashes: "x: 0123456789ab, y: ba9876543210", '
            'TI hashes: "z: 00aa", Denoising strength: 0.5, Hires upscale: 2, ENSD: 31337, RNG: CPU',
            {
                "prompt": "ein Kätzchen, 猫 🐱\n\nauf der Mauer", "negative_prompt": "a\nb, c: d", "num_inference_steps": 30,
                "scheduler": "euler-a", "guidance_scale": 6.5, "seed": 0, "width": 640, "height": 512,
            },
            model={"name": "a, b: c", "hash": None},
            unmapped={
                "Hires prompt": 'one,\ntwo: "three"', "Lora hashes": "x: 0123456789ab, y: ba9876543210", "TI hashes": "z: 00aa",
                "Denoising strength": "0.5", "Hires upscale": "2", "ENSD": "31337", "RNG": "CPU",
            },
        ),
        # Before 1.9 the spacing stood in the sampler's name, and before 1.0 there was a first pass.
        a1111(
            "a1111-old", "a cat\nSteps: 20, Sampler: DPM++ SDE Karras, CFG scale: 7, Seed: 1, Size: 1024x1024, "
            "Model hash: 45dee52b, First pass size: 512x512",
            {**base, "scheduler": "dpm++sde-karras"}, model={"name": None, "hash": "45dee52b"}, unmapped={"Size": "1024x1024"},
        ),
        # Only the last line is of details, whatever the others look like.
        a1111(
            "a1111-like-fields",
            "Steps: 99, Sampler: LMS, Seed: 5, Size: 8x8\nNegative prompt: Steps: 3, Seed: 4, Size: 9x9\nSteps: 20, "
            f"Sampler: Heun, Schedule type: Uniform, {tail}",
            {
                **base, "prompt": "Steps: 99, Sampler: LMS, Seed: 5, Size: 8x8",
                "negative_prompt": "Steps: 3, Seed: 4, Size: 9x9", "scheduler": "heun",
            },
        ),
        a1111(
            "a1111-no-prompt", f"Steps: 20, Sampler: PLMS, {tail}", {**base, "prompt": "", "scheduler": "pndm"},
        ),
        a1111(
            "a1111-eta", f"a cat\nSteps: 20, Sampler: DDIM, Schedule type: Automatic, {tail}, Eta DDIM: 0.5",
            {**base, "scheduler": "ddim", "eta": 0.5},
        ),
        # LoRAs by name; one weight for the U-Net and another for the encoder, paths, and one twice are not drawn.
        a1111(
            "a1111-networks",
            "<lora:ink>a cat <lora:line art.safetensors:0.5:0.5>, <lora:sea:te=-1:unet=-1> asleep <lora:x:1:0.5>\n"
            "on a mat <lora:../y:1><lora:z:1> <lora:z:0.5> <hypernet:h:1> <lora:w:1:dyn=8> <lora:v:much>\n"
            f"Steps: 20, Sampler: Euler, {tail}, Lora hashes: \"ink: 0123456789ab\"",
            {
                **base, "prompt": "a cat, asleep\non a mat", "scheduler": "euler",
                "lora": [{"name": "ink", "scale": 1.0}, {"name": "line art", "scale": 0.5}, {"name": "sea", "scale": -1.0}],
            },
            unmapped={
                "lora": [
                    {"name": "x", "weight": "1:0.5"}, {"name": "../y", "weight": "1"}, {"name": "z", "weight": "1"},
                    {"name": "z", "weight": "0.5"}, {"name": "w", "weight": "1:dyn=8"}, {"name": "v", "weight": "much"},
                ],
                "networks": ["<hypernet:h:1>"], "Lora hashes": "ink: 0123456789ab",
            },
        ),
        a1111(
            "a1111-variation",
            f"a cat\nSteps: 20, Sampler: Euler, {tail}, Variation seed: 77, Variation seed strength: 0.25",
            {**base, "scheduler": "euler", "variation": {"seed": 77, "strength": 0.25}},
        ),
        a1111(
            "a1111-no-variation",
            f"a cat\nSteps: 20, Sampler: Euler, {tail}, Variation seed: -1, Variation seed strength: 0.25",
            {**base, "scheduler": "euler"}, unmapped={"Variation seed": "-1", "Variation seed strength": "0.25"},
        ),
        # A second pass is drawn where it is enlarged by Lanczos; A1111 takes as many steps again, or as many as it says.
        a1111(
            "a1111-hires",
            f"a cat\nSteps: 20, Sampler: Euler, {tail}, Denoising strength: 0.6, Hires upscale: 1.5, Hires upscaler: Lanczos",
            {**base, "scheduler": "euler", "hires": {"factor": 1.5, "strength": 0.6}}, unmapped={"Hires steps": "20"},
        ),
        a1111(
            "a1111-hires-steps",
            f"a cat\nSteps: 20, Sampler: Euler, {tail}, Denoising strength: 0.6, Hires upscale: 2, Hires steps: 12, "
            "Hires upscaler: Lanczos, Hires CFG Scale: 5",
            {**base, "scheduler": "euler", "hires": {"factor": 2.0, "strength": 0.6}}, unmapped={"Hires CFG Scale": "5"},
        ),
        a1111(
            "a1111-hires-other",
            f"a cat\nSteps: 20, Sampler: Euler, {tail}, Denoising strength: 0.6, Hires upscale: 2, Hires steps: 12, "
            "Hires upscaler: R-ESRGAN 4x+",
            {**base, "scheduler": "euler"},
            unmapped={
                "Denoising strength": "0.6", "Hires upscale": "2", "Hires steps": "12", "Hires upscaler": "R-ESRGAN 4x+",
            },
        ),
        a1111(
            "a1111-hires-absurd",
            f"a cat\nSteps: 20, Sampler: Euler, {tail}, Denoising strength: 0, Hires upscale: 2, Hires upscaler: Lanczos",
            {**base, "scheduler": "euler"},
            unmapped={"Denoising strength": "0", "Hires upscale": "2", "Hires upscaler": "Lanczos"},
        ),
        # From a picture, which the text does not name.
        a1111(
            "a1111-picture-to-picture",
            f"a cat\nSteps: 20, Sampler: Euler, {tail}, Denoising strength: 0.75, Mask blur: 4", {**base, "scheduler": "euler"},
            unmapped={"Denoising strength": "0.75", "Mask blur": "4"},
        ),
        a1111(
            "a1111-upscale",
            f"a cat\nSteps: 20, Sampler: Euler, {tail}, Postprocess upscale by: 2, Postprocess upscaler: Lanczos",
            {**base, "scheduler": "euler", "upscale": {"name": "lanczos", "factor": 2.0}},
        ),
        a1111(
            "a1111-upscale-other",
            f"a cat\nSteps: 20, Sampler: Euler, {tail}, Postprocess upscale by: 2, Postprocess upscaler: Lanczos, "
            "Postprocess upscaler 2: R-ESRGAN 4x+",
            {**base, "scheduler": "euler"},
            unmapped={
                "Postprocess upscale by": "2", "Postprocess upscaler": "Lanczos", "Postprocess upscaler 2": "R-ESRGAN 4x+",
            },
        ),
        # What sdcli has not, or has of another order or spacing only.
        a1111(
            "a1111-no-such-sampler", f"a cat\nSteps: 20, Sampler: DPM++ 3M SDE, Schedule type: Karras, {tail}", base,
            unmapped={"Sampler": "DPM++ 3M SDE", "Schedule type": "Karras"},
        ),
        a1111("a1111-unipc", f"a cat\nSteps: 20, Sampler: UniPC, {tail}", base, unmapped={"Sampler": "UniPC"}),
        a1111(
            "a1111-no-such-spacing", f"a cat\nSteps: 20, Sampler: Euler, Schedule type: KL Optimal, {tail}", base,
            unmapped={"Sampler": "Euler", "Schedule type": "KL Optimal"},
        ),
        a1111(
            "a1111-absurd",
            "a cat\nSteps: 1000000000, Sampler: Euler, CFG scale: NaN, Seed: -1, Size: -5x99999, Clip skip: 1000",
            {"prompt": "a cat", "scheduler": "euler"},
            unmapped={"Steps": "1000000000", "CFG scale": "NaN", "Seed": "-1", "Size": "-5x99999", "Clip skip": "1000"},
        ),
        a1111(
            "forge",
            "a cat\nSteps: 20, Sampler: Euler, Schedule type: Simple, CFG scale: 1, Distilled CFG Scale: 3.5, Seed: 1, "
            "Size: 512x512, Model hash: 58725940e3, Model: flux-dev, Version: f2.0.1v1.10.1-previous-530-g8bd7e056, "
            "Diffusion in Low Bits: Automatic (fp16 LoRA), Module 1: ae, Module 2: clip_l",
            {**base, "guidance_scale": 1.0, "scheduler": "euler-sgm-uniform"}, source=FORGE,
            model={"name": "flux-dev", "hash": "58725940e3"},
            unmapped={
                "Distilled CFG Scale": "3.5", "Version": "f2.0.1v1.10.1-previous-530-g8bd7e056",
                "Diffusion in Low Bits": "Automatic (fp16 LoRA)", "Module 1": "ae", "Module 2": "clip_l",
            },
        ),
        Sample(
            name="forge-hidden", ending="png",
            make=lambda: saved(hidden(b"stealth_pngcomp", gzip.compress(PLAIN.encode())), "PNG"), **{**same, "source": FORGE},
        ),
        Sample(
            name="forge-hidden-plain", ending="webp",
            make=lambda: saved(hidden(b"stealth_pnginfo", PLAIN.encode()), "WEBP", lossless=True, exact=True),
            **{**same, "source": FORGE},
        ),
        a1111(
            "sdnext",
            "a cat\nNegative prompt: \nSteps: 20, Size: 512x512, Sampler: UniPC, Seed: 1, CFG scale: 7, CFG rescale: 0.7, "
            "Clip skip: 2, App: SD.Next, Version: 8b73cb6, Pipeline: StableDiffusionPipeline, Operations: txt2img, "
            "Model: sd15, Model hash: 6ce0161689, Sampler sigma: karras",
            {**base, "guidance_rescale": 0.7, "clip_skip": 1, "scheduler": "unipc-karras"}, source=SD_NEXT,
            model={"name": "sd15", "hash": "6ce0161689"},
            unmapped={
                "App": "SD.Next", "Version": "8b73cb6", "Pipeline": "StableDiffusionPipeline", "Operations": "txt2img",
            },
        ),
        # SD.Next's DPM++ SDE is of first order, and not A1111's.
        a1111(
            "sdnext-other-sampler", f"a cat\nSteps: 20, Sampler: DPM++ SDE, {tail}, App: SD.Next", base, source=SD_NEXT,
            unmapped={"Sampler": "DPM++ SDE", "App": "SD.Next"},
        ),
        a1111(
            "sdnext-other-order", f"a cat\nSteps: 20, Sampler: DPM++ 2M, {tail}, App: SD.Next, Sampler order: 3", base,
            source=SD_NEXT, unmapped={"Sampler": "DPM++ 2M", "App": "SD.Next", "Sampler order": "3"},
        ),
    ]  # fmt: skip


# ComfyUI

COMFY = "Comfy-Org/ComfyUI, nodes.py, comfy_extras/nodes_custom_sampler.py and others, comfy_api/latest/_ui.py"


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"inputs": inputs, "class_type": kind, "_meta": {"title": kind}}


CHECKPOINT = node("CheckpointLoaderSimple", ckpt_name="sd15.safetensors")
# The graph that a fresh ComfyUI shows.
DEFAULT = {
    "3": node(
        "KSampler", seed=156680208700286, steps=20, cfg=8, sampler_name="dpmpp_2m", scheduler="karras", denoise=1,
        model=["4", 0], positive=["6", 0], negative=["7", 0], latent_image=["5", 0],
    ),
    "4": CHECKPOINT,
    "5": node("EmptyLatentImage", width=512, height=768, batch_size=1),
    "6": node("CLIPTextEncode", text="a bottle on a beach", clip=["4", 1]),
    "7": node("CLIPTextEncode", text="text, watermark", clip=["4", 1]),
    "8": node("VAEDecode", samples=["3", 0], vae=["4", 2]),
    "9": node("SaveImage", filename_prefix="ComfyUI", images=["8", 0]),
}  # fmt: skip
DEFAULT_REQUEST = {
    "prompt": "a bottle on a beach", "negative_prompt": "text, watermark", "seed": 156680208700286, "num_inference_steps": 20,
    "guidance_scale": 8.0, "scheduler": "dpm++2m-karras", "width": 512, "height": 768,
}  # fmt: skip
SD15 = {"name": "sd15.safetensors", "hash": None}


def comfy(name: str, graph: Mapping[str, Any], request: Mapping[str, Any], **more: Any) -> Sample:
    texts = {"prompt": json.dumps(graph), "workflow": json.dumps({"nodes": [], "links": []})}
    more.setdefault("model", SD15)
    return Sample(
        name=f"comfyui{name}", ending="png", format="comfyui", source=COMFY, make=lambda: png(texts), request=request, **more
    )  # fmt: skip


def changed(**nodes: Any) -> dict[str, Any]:
    """The default graph with nodes changed (`n3={"seed": 1}`) or put in (`n20=node(...)`)."""
    graph: dict[str, Any] = json.loads(json.dumps(DEFAULT))
    for key, value in nodes.items():
        id = key.removeprefix("n")
        if "class_type" in value:
            graph[id] = value
        else:
            graph[id]["inputs"] |= value
    return graph


def comfy_samples() -> list[Sample]:
    flux = {
        "1": node("UNETLoader", unet_name="flux1-dev.safetensors", weight_dtype="default"),
        "2": node("DualCLIPLoader", clip_name1="clip_l.safetensors", clip_name2="t5xxl.safetensors", type="flux"),
        "3": node("CLIPTextEncode", text="a fox", clip=["2", 0]),
        "4": node("FluxGuidance", guidance=3.5, conditioning=["3", 0]),
        "5": node("ModelSamplingFlux", max_shift=1.15, base_shift=0.5, width=1024, height=1024, model=["1", 0]),
        "6": node("BasicGuider", model=["5", 0], conditioning=["4", 0]),
        "7": node("RandomNoise", noise_seed=["14", 0]),
        "8": node("KSamplerSelect", sampler_name="euler"),
        "9": node("BasicScheduler", scheduler="simple", steps=28, denoise=1, model=["5", 0]),
        "10": node("EmptySD3LatentImage", width=1024, height=1024, batch_size=2),
        "11": node(
            "SamplerCustomAdvanced", noise=["7", 0], guider=["6", 0], sampler=["8", 0], sigmas=["9", 0], latent_image=["10", 0]
        ),
        "12": node("VAEDecode", samples=["11", 0], vae=["13", 0]),
        "13": node("VAELoader", vae_name="ae.safetensors"),
        "14": node("PrimitiveInt", value=77, control_after_generate="randomize"),
        "15": node("PreviewImage", images=["12", 0]),
        "16": node("SaveImage", filename_prefix="flux", images=["12", 0]),
    }  # fmt: skip
    second = node(
        "KSampler", seed=9, steps=12, cfg=6.5, sampler_name="euler_ancestral", scheduler="normal", denoise=0.5, model=["4", 0],
        positive=["6", 0], negative=["7", 0], latent_image=["21", 0],
    )  # fmt: skip
    first_named = {
        "node": "3", "class_type": "KSampler", "seed": 156680208700286, "steps": 20, "cfg": 8, "sampler_name": "dpmpp_2m",
        "scheduler": "karras", "denoise": 1,
    }  # fmt: skip
    second_named = {
        "node": "20", "class_type": "KSampler", "seed": 9, "steps": 12, "cfg": 6.5, "sampler_name": "euler_ancestral",
        "scheduler": "normal", "denoise": 0.5,
    }  # fmt: skip
    combined = changed(
        n3={"positive": ["24", 0], "negative": ["24", 1]},
        n20=node("CLIPTextEncode", text="a storm", clip=["4", 1]),
        n21=node("ConditioningCombine", conditioning_1=["6", 0], conditioning_2=["22", 0]),
        n22=node("ConditioningConcat", conditioning_to=["20", 0], conditioning_from=["23", 0]),
        n23=node("CLIPTextEncode", text="at night", clip=["4", 1]),
        n24=node(
            "ControlNetApplyAdvanced", strength=1, start_percent=0, end_percent=1, positive=["21", 0], negative=["7", 0],
            control_net=["25", 0], image=["26", 0],
        ),
        n25=node("ControlNetLoader", control_net_name="canny.safetensors"),
        n26=node("LoadImage", image="pose.png"),
    )  # fmt: skip
    strings = changed(
        n6={"text": ["20", 0]},
        n20=node("StringConcatenate", string_a=["21", 0], string_b=["22", 0], delimiter=", "),
        n21=node("PrimitiveStringMultiline", value="a bottle"),
        n22=node("Reroute", **{"": ["23", 0]}),
        n23=node("PrimitiveString", value="on a beach"),
        n3={"steps": ["24", 0], "seed": ["25", 0]},
        n24=node("PrimitiveInt", value=20),
        n25=node("Seed (rgthree)", seed=156680208700286),
    )
    custom = changed(
        n3={"latent_image": ["5", 0]},
        n20=node(
            "SamplerCustom", add_noise=True, noise_seed=4, cfg=5, model=["4", 0], positive=["6", 0], negative=["7", 0],
            sampler=["21", 0], sigmas=["22", 0], latent_image=["5", 0],
        ),
        n21=node("KSamplerSelect", sampler_name="lms"),
        n22=node("KarrasScheduler", steps=15, sigma_max=14.614642, sigma_min=0.0291675, rho=7),
        n8={"samples": ["20", 0]},
    )  # fmt: skip
    del custom["3"]
    lora = changed(
        n3={"model": ["21", 0]},
        n20=node(
            "LoraLoader",
            lora_name="sea.safetensors",
            strength_model=0.8,
            strength_clip=1,
            model=["4", 0],
            clip=["4", 1],
        ),
        n21=node("FreeU_V2", b1=1.3, b2=1.4, s1=0.9, s2=0.2, model=["20", 0]),
    )
    both = {
        "n20": node("LoraLoader", lora_name="sea.safetensors", strength_model=0.8, strength_clip=0.8, model=["4", 0],
                    clip=["4", 1]),
        "n21": node("Power Lora Loader (rgthree)", lora_1={"on": True, "lora": "ink.safetensors", "strength": 0.5},
                    lora_2={"on": False, "lora": "off.safetensors", "strength": 1},
                    lora_3={"on": True, "lora": "sub/x.safetensors", "strength": 1}, model=["20", 0], clip=["20", 1]),
        "n22": node("LoraLoaderModelOnly", lora_name="lcm.safetensors", strength_model=1, model=["21", 0]),
        "n3": {"model": ["22", 0]}, "n6": {"clip": ["21", 1]}, "n7": {"clip": ["21", 1]},
    }  # fmt: skip
    webp = {"prompt": json.dumps(DEFAULT), "workflow": json.dumps({"nodes": []})}
    return [
        comfy("", DEFAULT, DEFAULT_REQUEST),
        Sample(
            name="comfyui-webp", ending="webp", format="comfyui", source=COMFY,
            make=lambda: saved(
                PICTURE, "WEBP", exif=ifd0({0x0110: f"prompt:{webp['prompt']}", 0x010F: f"workflow:{webp['workflow']}"})
            ),
            request=DEFAULT_REQUEST, model=SD15,
        ),
        # The negative text stands first in the graph, and NaN is what ComfyUI writes for a node that never is the same.
        comfy(
            "-order", {"7": DEFAULT["7"], **DEFAULT, "30": {**node("LoadImage", image="x.png"), "is_changed": [float("nan")]}},
            DEFAULT_REQUEST,
        ),
        comfy("-text-of-nobody", changed(n0=node("CLIPTextEncode", text="not this", clip=["4", 1])), DEFAULT_REQUEST),
        # Two passes: the second is the one that is saved.
        comfy(
            "-two-passes",
            changed(
                n8={"samples": ["20", 0]}, n20=second,
                n21=node("LatentUpscale", samples=["3", 0], upscale_method="bislerp", width=1024, height=1536, crop="disabled"),
            ),
            {
                "prompt": "a bottle on a beach", "negative_prompt": "text, watermark", "seed": 9, "num_inference_steps": 12,
                "guidance_scale": 6.5, "scheduler": "euler-a",
            },
            unmapped={"latent_image": "from the node LatentUpscale", "denoise": 0.5, "samplers": [first_named]},
        ),
        # Both passes are saved, and the picture does not say which it is.
        comfy(
            "-two-saved",
            changed(
                n20={**second, "inputs": {**second["inputs"], "latent_image": ["5", 0]}},
                n22=node("VAEDecode", samples=["20", 0], vae=["4", 2]),
                n23=node("SaveImage", filename_prefix="second", images=["22", 0]),
            ),
            {"prompt": "a bottle on a beach", "negative_prompt": "text, watermark", "width": 512, "height": 768},
            unmapped={
                "samplers": [
                    {**first_named, "request": DEFAULT_REQUEST},
                    {
                        **second_named,
                        "request": {
                            **DEFAULT_REQUEST, "seed": 9, "num_inference_steps": 12, "guidance_scale": 6.5,
                            "scheduler": "euler-a",
                        },
                    },
                ]
            },
        ),
        comfy(
            "-combined", combined, {**DEFAULT_REQUEST, "prompt": "a bottle on a beach\na storm\nat night"},
            unmapped={
                "positive conditioning": ["ControlNetApplyAdvanced", "ConditioningCombine", "ConditioningConcat"],
                "negative conditioning": ["ControlNetApplyAdvanced"],
            },
        ),
        comfy("-strings", strings, {**DEFAULT_REQUEST, "prompt": "a bottle, on a beach"}),
        comfy(
            "-unknown-text", changed(n6={"text": ["20", 0]}, n20=node("LLM", question="what?", temperature=1)),
            {k: v for k, v in DEFAULT_REQUEST.items() if k != "prompt"},
            unmapped={"positive text": "from the node LLM"},
        ),
        comfy(
            "-sdxl",
            changed(
                n6=node(
                    "CLIPTextEncodeSDXL", width=1024, height=1024, crop_w=0, crop_h=0, target_width=1024, target_height=1024,
                    text_g="a bottle, photo", text_l="a bottle on a beach", clip=["20", 0],
                ),
                n7=node(
                    "CLIPTextEncodeSDXL", width=1024, height=1024, crop_w=0, crop_h=0, target_width=1024, target_height=1024,
                    text_g="text, watermark", text_l="text, watermark", clip=["20", 0],
                ),
                n20=node("CLIPSetLastLayer", stop_at_clip_layer=-2, clip=["4", 1]),
            ),
            DEFAULT_REQUEST, unmapped={"positive text_g": "a bottle, photo", "stop_at_clip_layer": -2},
        ),
        comfy(
            "-flux", flux,
            {
                "prompt": "a fox", "seed": 77, "num_inference_steps": 28, "scheduler": "euler-sgm-uniform", "width": 1024,
                "height": 1024,
            },
            model={"name": "flux1-dev.safetensors", "hash": None},
            unmapped={"guidance": 3.5, "batch_size": 2, "model patches": ["ModelSamplingFlux"]},
        ),
        comfy(
            "-custom", custom,
            {
                **DEFAULT_REQUEST, "seed": 4, "num_inference_steps": 15, "guidance_scale": 5.0, "scheduler": "lms-karras",
            },
            unmapped={"add_noise": True},
        ),
        comfy(
            "-zero-negative", changed(n3={"negative": ["20", 0]}, n20=node("ConditioningZeroOut", conditioning=["6", 0])),
            {k: v for k, v in DEFAULT_REQUEST.items() if k != "negative_prompt"},
            unmapped={"negative conditioning": ["ConditioningZeroOut"]},
        ),
        comfy(
            "-lora", lora, DEFAULT_REQUEST,
            unmapped={
                "loras": [{"lora_name": "sea.safetensors", "strength_model": 0.8, "strength_clip": 1}],
                "model patches": ["FreeU_V2"],
            },
        ),
        # Taken where the model and the encoders of both texts come through it, with one strength.
        comfy(
            "-loras", changed(**both),
            {**DEFAULT_REQUEST, "lora": [{"name": "ink", "scale": 0.5}, {"name": "sea", "scale": 0.8}]},
            unmapped={
                "loras": [
                    {"lora_name": "lcm.safetensors", "strength_model": 1},
                    {"on": True, "lora": "sub/x.safetensors", "strength": 1},
                ],
            },
        ),
        comfy(
            "-lora-of-one-text", changed(**{**both, "n7": {"clip": ["20", 1]}}),
            {**DEFAULT_REQUEST, "lora": [{"name": "sea", "scale": 0.8}]},
            unmapped={
                "loras": [
                    {"lora_name": "lcm.safetensors", "strength_model": 1},
                    {"on": True, "lora": "ink.safetensors", "strength": 0.5},
                    {"on": True, "lora": "sub/x.safetensors", "strength": 1},
                ],
            },
        ),
        comfy(
            "-lora-of-the-texts",
            changed(**{**both, "n3": {"model": ["4", 0]}, "n6": {"clip": ["20", 1]}, "n7": {"clip": ["20", 1]}}),
            DEFAULT_REQUEST,
            unmapped={"loras": [{"lora_name": "sea.safetensors", "strength_model": 0.8, "strength_clip": 0.8}]},
        ),
        comfy(
            "-picture-to-picture",
            changed(n3={"latent_image": ["20", 0], "denoise": 0.87}, n20=node("VAEEncode", pixels=["21", 0], vae=["4", 2]),
                    n21=node("LoadImage", image="example.png")),
            {k: v for k, v in DEFAULT_REQUEST.items() if k not in ("width", "height")},
            unmapped={"latent_image": "from the node VAEEncode", "denoise": 0.87},
        ),
        # A node that goes over the picture once more is no sampler of the whole.
        comfy(
            "-detailer",
            changed(
                n9={"images": ["20", 0]},
                n20=node(
                    "FaceDetailer", seed=1, steps=8, cfg=5, sampler_name="euler", scheduler="normal", denoise=0.4,
                    image=["8", 0], model=["4", 0], positive=["6", 0], negative=["7", 0], vae=["4", 2],
                ),
            ),
            DEFAULT_REQUEST,
            unmapped={
                "samplers": [{
                    "node": "20", "class_type": "FaceDetailer", "seed": 1, "steps": 8, "cfg": 5, "sampler_name": "euler",
                    "scheduler": "normal", "denoise": 0.4,
                }],
            },
        ),
        # A loader of others' that has the texts as well.
        comfy(
            "-loader-with-texts",
            changed(
                n3={"model": ["20", 0], "positive": ["20", 1], "negative": ["20", 2]},
                n20=node(
                    "Efficient Loader", ckpt_name="sd15.safetensors", positive="a bottle on a beach", negative="text, watermark"
                ),
            ),
            DEFAULT_REQUEST,
        ),
        # Its `ddim` is Euler's method; what sdcli has of another order stays unmapped, and so does a seed of 64 bits.
        comfy("-ddim", changed(n3={"sampler_name": "ddim", "scheduler": "normal"}), {**DEFAULT_REQUEST, "scheduler": "euler"}),
        comfy(
            "-other-sampler", changed(n3={"sampler_name": "uni_pc", "seed": 2**64 - 1}),
            {k: v for k, v in DEFAULT_REQUEST.items() if k not in ("scheduler", "seed")},
            unmapped={"sampler_name": "uni_pc", "scheduler": "karras", "seed": 2**64 - 1},
        ),
        comfy(
            "-gpu-noise", changed(n3={"sampler_name": "dpmpp_2m_sde_gpu", "scheduler": "exponential"}),
            {**DEFAULT_REQUEST, "scheduler": "dpm++2m-sde-exponential"}, unmapped={"sampler_name": "dpmpp_2m_sde_gpu"},
        ),
        comfy(
            "-no-sampler", {"1": node("LoadImage", image="x.png"), "2": node("SaveImage", images=["1", 0])}, {}, model=None,
            unmapped={"nodes": ["LoadImage", "SaveImage"]},
        ),
        comfy(
            "-cycle",
            changed(
                n3={"positive": ["20", 0], "model": ["21", 0], "latent_image": ["22", 0], "steps": ["23", 0]},
                n20=node("ConditioningCombine", conditioning_1=["20", 0], conditioning_2=["6", 0]),
                n21=node("ModelPatch", model=["21", 0]),
                n22=node("Reroute", samples=["22", 0]),
                n23=node("Reroute", value=["23", 0]),
                n4={"ckpt_name": ["4", 0]},
            ),
            {k: v for k, v in DEFAULT_REQUEST.items() if k not in ("width", "height", "num_inference_steps")}, model=None,
            unmapped={"positive conditioning": ["ConditioningCombine"], "steps": "from the node Reroute"},
        ),
    ]  # fmt: skip


# InvokeAI

INVOKE = "invoke-ai/InvokeAI, invokeai/app/invocations/metadata.py and services/image_files/image_files_disk.py"
INVOKE_2 = "invoke-ai/InvokeAI 2.x, ldm/invoke/args.py, pngwriter.py and conditioning.py"


def invoke_samples() -> list[Sample]:
    current = {
        "generation_mode": "txt2img", "positive_prompt": "a barn owl", "negative_prompt": "blurry", "width": 512, "height": 768,
        "seed": 2210118364, "rand_device": "cpu", "cfg_scale": 7.5, "cfg_rescale_multiplier": 0.3, "steps": 30,
        "scheduler": "dpmpp_2m_k", "seamless_x": False, "clip_skip": 1,
        "model": {
            "key": "4b6b2c43", "hash": "blake3:0123456789abcdef", "name": "sd15", "base": "sd-1", "type": "main",
        },
        "loras": [{"model": {"key": "x", "name": "ink"}, "weight": 0.75}], "vae": None, "app_version": "5.0.0",
    }  # fmt: skip
    third = {
        "generation_mode": "sdxl_txt2img", "positive_prompt": "oil painting", "negative_prompt": "", "width": 1024,
        "height": 1024, "seed": 3293022630, "rand_device": "cpu", "cfg_scale": 8.0, "cfg_rescale_multiplier": 0.0, "steps": 35,
        "scheduler": "unipc", "model": {"model_name": "xl", "base_model": "sdxl", "model_type": "main"},
        "positive_style_prompt": "",
    }  # fmt: skip
    compel = {
        **third, "positive_prompt": "a ball++ (in the sun)1.2", "init_image": "x.png", "strength": 0.6,
        "generation_mode": "sdxl_img2img",
        "loras": [
            {"lora": {"model_name": "ink", "base_model": "sdxl"}, "weight": 0.5},
            {"lora": {"model_name": "a/b", "base_model": "sdxl"}, "weight": 1}, "what",
        ],
    }  # fmt: skip
    flow = {
        "generation_mode": "flux_txt2img", "positive_prompt": "a fox", "seed": 1, "steps": 4, "scheduler": "euler",
        "guidance": 3.5, "model": {"name": "flux", "hash": None, "base": "flux"},
    }  # fmt: skip
    legacy = {
        "model": "stable diffusion", "model_weights": "stable-diffusion-1.5", "model_hash": "cc6cb27103417325",
        "app_id": "invoke-ai/InvokeAI", "app_version": "2.3.0",
        "image": {
            "prompt": [{"prompt": "a barn owl [blurry, dark] at night", "weight": 1.0}], "steps": 50, "cfg_scale": 7.5,
            "threshold": 0, "perlin": 0, "height": 768, "width": 512, "seed": 2980747362, "seamless": False,
            "hires_fix": False, "type": "txt2img", "postprocessing": None, "sampler": "ddim", "variations": [],
        },
    }  # fmt: skip
    dream = (
        '"a barn owl [blurry] with a "hat"" -s 50 -S 2980747362 -W 512 -H 768 -C 5 -A k_lms -G 0.9 -U 4 0.95 --seamless'
    )
    of_dream = {
        "prompt": 'a barn owl with a "hat"', "negative_prompt": "blurry", "num_inference_steps": 50, "seed": 2980747362,
        "width": 512, "height": 768, "guidance_scale": 5.0,
    }  # fmt: skip
    of_legacy = {
        "prompt": "a barn owl at night", "negative_prompt": "blurry, dark", "num_inference_steps": 50, "guidance_scale": 7.5,
        "seed": 2980747362, "width": 512, "height": 768, "scheduler": "ddim",
    }  # fmt: skip

    def sample(name: str, texts: Mapping[str, str], request: Mapping[str, Any], **more: Any) -> Sample:
        more.setdefault("source", INVOKE)
        return Sample(
            name=f"invokeai{name}", ending="png", format="invokeai", make=lambda: png(texts), request=request, **more
        )  # fmt: skip

    return [
        sample(
            "", {"invokeai_metadata": json.dumps(current), "invokeai_graph": "{}"},
            {
                "prompt": "a barn owl", "negative_prompt": "blurry", "width": 512, "height": 768, "seed": 2210118364,
                "guidance_scale": 7.5, "guidance_rescale": 0.3, "num_inference_steps": 30, "scheduler": "dpm++2m-karras",
                "clip_skip": 1, "lora": [{"name": "ink", "scale": 0.75}],
            },
            model={
                "name": "sd15", "hash": "blake3:0123456789abcdef", "key": "4b6b2c43", "base": "sd-1", "type": "main",
            },
            unmapped={
                "generation_mode": "txt2img", "rand_device": "cpu", "seamless_x": False,
                "app_version": "5.0.0",
            },
        ),
        sample(
            "-3", {"invokeai_metadata": json.dumps(third)},
            {
                "prompt": "oil painting", "width": 1024, "height": 1024, "seed": 3293022630, "guidance_scale": 8.0,
                "guidance_rescale": 0.0, "num_inference_steps": 35, "scheduler": "unipc",
            },
            model={"name": "xl", "hash": None, "base_model": "sdxl", "model_type": "main"},
            unmapped={"generation_mode": "sdxl_txt2img", "rand_device": "cpu"},
        ),
        # Its prompts are compel's.
        sample(
            "-compel", {"invokeai_metadata": json.dumps(compel)},
            {
                "prompt": "a ball++ (in the sun)1.2", "width": 1024, "height": 1024, "seed": 3293022630, "guidance_scale": 8.0,
                "guidance_rescale": 0.0, "num_inference_steps": 35, "scheduler": "unipc", "prompt_syntax": "compel",
                "lora": [{"name": "ink", "scale": 0.5}],
            },
            model={"name": "xl", "hash": None, "base_model": "sdxl", "model_type": "main"},
            unmapped={
                "generation_mode": "sdxl_img2img", "rand_device": "cpu", "init_image": "x.png", "strength": 0.6,
                "loras": compel["loras"][1:],
            },
        ),
        # Euler's method by flow matching is another thing.
        sample(
            "-flow", {"invokeai_metadata": json.dumps(flow)}, {"prompt": "a fox", "seed": 1, "num_inference_steps": 4},
            model={"name": "flux", "hash": None, "base": "flux"},
            unmapped={"generation_mode": "flux_txt2img", "scheduler": "euler", "guidance": 3.5},
        ),
        sample(
            "-2", {"Dream": dream, "sd-metadata": json.dumps(legacy)}, of_legacy, source=INVOKE_2,
            model={"name": "stable-diffusion-1.5", "hash": "cc6cb27103417325"},
            unmapped={
                "model": "stable diffusion", "app_id": "invoke-ai/InvokeAI", "app_version": "2.3.0", "threshold": 0,
                "perlin": 0, "seamless": False, "hires_fix": False, "type": "txt2img",
            },
        ),
        sample(
            "-dream", {"Dream": dream}, of_dream, source=INVOKE_2,
            unmapped={"sampler": "k_lms", "G": "0.9", "U": "4 0.95", "seamless": True},
        ),
        sample(
            "-dream-1", {"Dream": "a barn owl -s50 -S42 -W512 -H768 -C7.5 -Aplms"},
            {
                "prompt": "a barn owl", "num_inference_steps": 50, "seed": 42, "width": 512, "height": 768,
                "guidance_scale": 7.5, "scheduler": "pndm",
            },
            source=INVOKE_2,
        ),
    ]  # fmt: skip


# Fooocus

FOOOCUS = "lllyasviel/Fooocus, modules/meta_parser.py, async_worker.py and private_logger.py"


def fooocus_samples() -> list[Sample]:
    values = {
        "adm_guidance": "(1.5, 0.8, 0.3)", "base_model": "juggernautXL_v8", "base_model_hash": "aeb7e9e689", "clip_skip": 2,
        "full_negative_prompt": ["fog, worst quality"], "full_prompt": ["cinematic still a goldfish . moody"],
        "guidance_scale": 4, "loras": [["offset_0.1", 0.1, "4852686128"]], "metadata_scheme": "fooocus",
        "negative_prompt": "fog", "performance": "Speed", "prompt": "a goldfish", "prompt_expansion": "",
        "refiner_model": "None", "refiner_switch": 0.5, "resolution": "(896, 1152)", "sampler": "dpmpp_2m_sde_gpu",
        "scheduler": "karras", "seed": "8010345178389164812", "sharpness": 2,
        "steps": 30, "styles": "['Fooocus V2', '__import__(\"os\").abort()']", "vae": "Default (model)",
        "version": "Fooocus v2.5.5",
    }  # fmt: skip
    request = {
        "prompt": "a goldfish", "negative_prompt": "fog", "seed": 8010345178389164812, "num_inference_steps": 30,
        "guidance_scale": 4.0, "scheduler": "dpm++2m-sde-karras", "width": 896, "height": 1152, "clip_skip": 0,
        "lora": [{"name": "offset_0.1", "scale": 0.1}],
    }  # fmt: skip
    model = {"name": "juggernautXL_v8", "hash": "aeb7e9e689"}
    taken = (
        "base_model", "base_model_hash", "clip_skip", "guidance_scale", "negative_prompt", "prompt", "resolution", "sampler",
        "scheduler", "seed", "steps", "prompt_expansion", "loras",
    )  # fmt: skip
    rest = {k: v for k, v in values.items() if k not in taken}
    # As `eval` would have it.
    attack = {**values, "resolution": "__import__('os').abort()", "sampler": "dpmpp_3m_sde", "clip_skip": 1}
    text = (
        "cinematic still a goldfish . moody\nNegative prompt: fog, worst quality\n"
        "Steps: 30, Sampler: DPM++ 2M SDE Karras, Seed: 8010345178389164812, Size: 896x1152, CFG scale: 4, Sharpness: 2, "
        'ADM Guidance: "(1.5, 0.8, 0.3)", Model: juggernautXL_v8, Model hash: aeb7e9e689, Performance: Speed, '
        "Scheduler: karras, VAE: Default (model), Raw prompt: a goldfish, Raw negative prompt: fog, Clip skip: 2, "
        'Lora hashes: "offset_0.1: 4852686128", Lora weights: "offset_0.1: 0.1", Version: Fooocus v2.5.5'
    )
    rest_of_text = {
        "full_prompt": "cinematic still a goldfish . moody", "full_negative_prompt": "fog, worst quality", "Sharpness": "2",
        "ADM Guidance": "(1.5, 0.8, 0.3)", "Performance": "Speed", "VAE": "Default (model)",
        "Lora hashes": "offset_0.1: 4852686128", "Version": "Fooocus v2.5.5",
    }  # fmt: skip

    def exif(text: str, scheme: str) -> bytes:
        return ifd0({0x9286: text, 0x0131: "Fooocus v2.5.5", 0x927C: scheme})

    def sample(name: str, ending: str, make: Callable[[], bytes], **more: Any) -> Sample:
        more = {"request": request, "model": model} | more
        return Sample(name=f"fooocus{name}", ending=ending, format="fooocus", source=FOOOCUS, make=make, **more)

    written = json.dumps(values)
    return [
        sample("", "png", lambda: png({"parameters": written, "fooocus_scheme": "fooocus"}), unmapped=rest),
        sample("-jpg", "jpg", lambda: saved(PICTURE, "JPEG", exif=exif(written, "fooocus")), unmapped=rest),
        sample("-webp", "webp", lambda: saved(PICTURE, "WEBP", exif=exif(written, "fooocus")), unmapped=rest),
        # What the prompt names stands in the list as well.
        sample(
            "-lora-in-prompt", "png",
            lambda: png({
                "parameters": json.dumps({**values, "prompt": "a goldfish <lora:offset_0.1:0.1> <lora:old:0.3>"}),
                "fooocus_scheme": "fooocus",
            }),
            request={**request, "lora": [{"name": "offset_0.1", "scale": 0.1}, {"name": "old", "scale": 0.3}]}, unmapped=rest,
        ),
        sample(
            "-eval", "png", lambda: png({"parameters": json.dumps(attack), "fooocus_scheme": "fooocus"}),
            request={k: v for k, v in request.items() if k not in ("width", "height", "scheduler", "clip_skip")},
            unmapped={
                **rest, "resolution": "__import__('os').abort()", "sampler": "dpmpp_3m_sde", "scheduler": "karras",
                "clip_skip": 1,
            },
        ),
        sample("-a1111", "png", lambda: png({"parameters": text, "fooocus_scheme": "a1111"}), unmapped=rest_of_text),
        sample("-a1111-jpg", "jpg", lambda: saved(PICTURE, "JPEG", exif=exif(text, "a1111")), unmapped=rest_of_text),
    ]  # fmt: skip


# NovelAI

NOVELAI = "NovelAI/novelai-image-metadata, nai_meta.py; keys as in d3x-at/sd-parsers' tests and public pictures"


def novelai_samples() -> list[Sample]:
    first = {
        "steps": 28, "sampler": "k_euler_ancestral", "seed": 2253955223, "strength": 0.7, "noise": 0.2, "scale": 11.0,
        "uc": "lowres, bad anatomy",
    }  # fmt: skip
    fourth = {
        "prompt": "1girl, night sky", "steps": 28, "height": 1216, "width": 832, "scale": 5.5, "uncond_scale": 0.0,
        "cfg_rescale": 0.2, "seed": 3816166865, "n_samples": 1, "noise_schedule": "karras", "legacy_v3_extend": False,
        "sampler": "k_dpmpp_2m", "sm": False, "sm_dyn": False, "uc": "lowres", "request_type": "PromptGenerateRequest",
        "v4_prompt": {"caption": {"base_caption": "1girl, night sky", "char_captions": []}, "use_coords": False},
        "v4_negative_prompt": {"caption": {"base_caption": "lowres", "char_captions": []}, "legacy_uc": False},
        "signed_hash": "aGFzaA==",
    }  # fmt: skip
    texts = {
        "Title": "NovelAI generated image", "Description": fourth["prompt"], "Software": "NovelAI",
        "Source": "NovelAI Diffusion V4 37442FCA", "Generation time": "4.2", "Comment": json.dumps(fourth),
    }  # fmt: skip
    without = {k: v for k, v in texts.items() if k != "Title"}
    request = {
        "prompt": "1girl, night sky", "negative_prompt": "lowres", "seed": 3816166865, "num_inference_steps": 28,
        "guidance_scale": 5.5, "guidance_rescale": 0.2, "width": 832, "height": 1216, "scheduler": "dpm++2m-karras",
    }  # fmt: skip
    rest = {
        "uncond_scale": 0.0, "n_samples": 1, "legacy_v3_extend": False, "sm": False, "sm_dyn": False,
        "request_type": "PromptGenerateRequest", "signed_hash": "aGFzaA==",
    }  # fmt: skip
    model = {"name": "NovelAI Diffusion V4", "hash": "37442FCA"}
    native = {**fourth, "noise_schedule": "native", "v4_prompt": None, "v4_negative_prompt": None}

    def sample(name: str, make: Callable[[], bytes], **more: Any) -> Sample:
        more = {"ending": "png", "request": request, "model": model, "unmapped": rest} | more
        return Sample(name=f"novelai{name}", format="novelai", source=NOVELAI, make=make, **more)

    return [
        sample(
            "-1",
            lambda: png({
                "Title": "AI generated image", "Description": "cat, space, icon", "Software": "NovelAI",
                "Source": "Stable Diffusion 1D44365E", "Comment": json.dumps(first),
            }),
            request={
                "prompt": "cat, space, icon", "negative_prompt": "lowres, bad anatomy", "num_inference_steps": 28,
                "seed": 2253955223, "guidance_scale": 11.0, "scheduler": "euler-a",
            },
            model={"name": "Stable Diffusion", "hash": "1D44365E"}, unmapped={"strength": 0.7, "noise": 0.2},
        ),
        sample("", lambda: png(texts)),
        sample(
            "-native", lambda: png({**texts, "Comment": json.dumps(native)}),
            request={k: v for k, v in request.items() if k != "scheduler"},
            unmapped={**rest, "sampler": "k_dpmpp_2m", "noise_schedule": "native"},
        ),
        # With no text left, the alpha channel still says it.
        sample("-hidden", lambda: saved(hidden(b"stealth_pngcomp", gzip.compress(json.dumps(without).encode())), "PNG")),
        sample(
            "-hidden-webp",
            lambda: saved(
                hidden(b"stealth_pngcomp", gzip.compress(json.dumps(without).encode())), "WEBP", lossless=True, exact=True
            ),
            ending="webp",
        ),
    ]  # fmt: skip


# Draw Things, stable-diffusion.cpp, mflux, mold

DRAW_THINGS = "drawthingsai/draw-things-community, Libraries/LocalImageGenerator/Sources/ImageConverter.swift"
SDCPP = "leejet/stable-diffusion.cpp, examples/common/common.cpp, media_io.cpp and thirdparty/stb_image_write.h"
MFLUX = "filipstrand/mflux, src/mflux/utils/generated_image.py, image_util.py and metadata_builder.py"
MOLD = "utensils/mold, crates/mold-inference/src/image.rs and crates/mold-core/src/types.rs"


def draw_things_samples() -> list[Sample]:
    values = {
        "c": "a red cube & <blue> sky\nat dusk", "uc": "fog", "model": "sd_v1.5_f16.ckpt", "sampler": "DPM++ 2M Karras",
        "scale": 7.5, "seed": 2441935286, "seed_mode": "Scale Alike", "size": "512x768", "steps": 20, "strength": 1,
        "clip_skip": 2, "lora": [{"model": "detail.ckpt", "weight": 0.8}], "v2": {"steps": 20, "seed": 2441935286},
    }  # fmt: skip
    namespaces = 'xmlns:exif="http://ns.adobe.com/exif/1.0/" xmlns:xmp="http://ns.adobe.com/xap/1.0/"'
    # ImageIO puts the text where a language can be said.
    content = (
        "\n <xmp:CreatorTool>Draw Things</xmp:CreatorTool>\n <exif:UserComment>\n  <rdf:Alt>\n   "
        f'<rdf:li xml:lang="x-default">{escape(json.dumps(values))}</rdf:li>\n  </rdf:Alt>\n </exif:UserComment>\n'
    )
    request = {
        "prompt": "a red cube & <blue> sky\nat dusk", "negative_prompt": "fog", "seed": 2441935286, "num_inference_steps": 20,
        "guidance_scale": 7.5, "scheduler": "dpm++2m-karras", "width": 512, "height": 768, "clip_skip": 1,
    }  # fmt: skip
    more: dict[str, Any] = {
        "format": "drawthings", "source": DRAW_THINGS, "model": {"name": "sd_v1.5_f16.ckpt", "hash": None},
        "unmapped": {"seed_mode": "Scale Alike", "strength": 1, "lora": [{"model": "detail.ckpt", "weight": 0.8}]},
    }  # fmt: skip
    sdxl = {**values, "sampler": "UniPC Trailing", "target_size": "1024x1024"}
    return [
        Sample(
            name="drawthings", ending="png", request=request,
            make=lambda: png({"XML:com.adobe.xmp": xmp_packet(namespaces, content), "Software": "Draw Things"}, itxt=True),
            **more,
        ),
        Sample(
            name="drawthings-exif", ending="jpg", request=request,
            make=lambda: saved(PICTURE, "JPEG", exif=user_comment(b"ASCII\0\0\0" + json.dumps(values).encode())), **more,
        ),
        Sample(
            name="drawthings-sdxl", ending="png",
            make=lambda: png({}, exif=unicode_comment(json.dumps(sdxl))),
            request={k: v for k, v in request.items() if k not in ("scheduler", "clip_skip")},
            **{
                **more,
                "unmapped": {
                    **more["unmapped"], "sampler": "UniPC Trailing", "clip_skip": 2, "target_size": "1024x1024",
                },
            },
        ),
    ]  # fmt: skip


def sdcpp_samples() -> list[Sample]:
    said = {
        "schema": "sdcpp.image.params/v1", "mode": "img_gen",
        "generator": {"name": "stable-diffusion.cpp", "version": "master-1", "commit": "97d2990"},
        "seed": 42, "width": 512, "height": 768, "prompt": {"positive": "ein Kätzchen, SDCPP: {", "negative": "fog"},
        "sampling": {
            "steps": 20, "eta": None, "shifted_timestep": 0, "flow_shift": None, "extra_sample_args": "",
            "guidance": {
                "txt_cfg": 7.0, "img_cfg": 7.0, "distilled_guidance": 3.5,
                "slg": {"scale": 0.0, "layers": [7], "start": 0.01, "end": 0.2},
            },
            "method": "dpm++2m", "scheduler": "karras", "custom_sigmas": [],
        },
        "models": {"model": "sd15.safetensors", "vae": "ae.safetensors"}, "clip_skip": -1, "strength": 0.75, "rng": "cuda",
        "loras": [
            {"name": "sea", "multiplier": 0.8, "is_high_noise": False},
            {"name": "wan", "multiplier": 1, "is_high_noise": True},
        ],
    }  # fmt: skip
    text = (
        "ein Kätzchen, SDCPP: {<lora:sea:0.8>\nNegative prompt: fog\nSteps: 20, CFG scale: 7.000000, Guidance: 3.500000, "
        "Eta: inf, Seed: 42, Size: 512x768, Model: sd15.safetensors, RNG: cuda, Sampler: dpm++2m karras, VAE: ae.safetensors, "
        "Version: stable-diffusion.cpp"
    )
    now = f"{text}, SDCPP: {json.dumps(said, ensure_ascii=False)}"
    request = {
        "prompt": "ein Kätzchen, SDCPP: {", "negative_prompt": "fog", "seed": 42, "width": 512, "height": 768,
        "num_inference_steps": 20, "guidance_scale": 7.0, "scheduler": "dpm++2m-karras",
        "lora": [{"name": "sea", "scale": 0.8}],
    }  # fmt: skip
    model = {"name": "sd15.safetensors", "hash": None}
    rest = {
        "schema": said["schema"], "mode": "img_gen", "generator": said["generator"], "strength": 0.75, "rng": "cuda",
        "loras": said["loras"][1:],
        "sampling": {
            "eta": None, "shifted_timestep": 0, "flow_shift": None, "extra_sample_args": "", "custom_sigmas": [],
        },
        "guidance": {
            "img_cfg": 7.0, "distilled_guidance": 3.5, "slg": {"scale": 0.0, "layers": [7], "start": 0.01, "end": 0.2},
        },
        "models": {"vae": "ae.safetensors"},
    }  # fmt: skip
    more: dict[str, Any] = {"format": "sdcpp", "source": SDCPP, "model": model}
    packet = xmp_packet(
        'xmlns:sdcpp="https://github.com/leejet/stable-diffusion.cpp/ns/1.0/"',
        f"<sdcpp:parameters>{escape(now)}</sdcpp:parameters>",
    )
    return [
        # It writes UTF-8 where PNG has Latin-1.
        Sample(
            name="sdcpp", ending="png", make=lambda: png_chunks(chunk(b"tEXt", b"parameters\0" + now.encode())),
            request=request, unmapped=rest, **more,
        ),
        Sample(
            name="sdcpp-jpg", ending="jpg", make=lambda: jpeg_segments((0xFE, b"parameters\0" + now.encode() + b"\0")),
            request=request, unmapped=rest, **more,
        ),
        Sample(
            name="sdcpp-webp", ending="webp", make=lambda: saved(PICTURE, "WEBP", xmp=packet.encode()), request=request,
            unmapped=rest, **more,
        ),
        Sample(
            name="sdcpp-old", ending="png",
            make=lambda: png_chunks(chunk(b"tEXt", b"parameters\0" + f"{text}, Clip skip: 2".encode())),
            request={**request, "clip_skip": 1},
            unmapped={
                "Guidance": "3.500000", "Eta": "inf", "RNG": "cuda",
                "VAE": "ae.safetensors", "Version": "stable-diffusion.cpp",
            },
            **more,
        ),
        Sample(
            name="sdcpp-other-sampler", ending="png",
            make=lambda: png({
                "parameters": "a cat\nSteps: 4, CFG scale: 1.000000, Seed: 1, Size: 512x512, Model: x.gguf, RNG: cuda, "
                "Sampler: ipndm discrete, Version: stable-diffusion.cpp"
            }),
            request={
                "prompt": "a cat", "num_inference_steps": 4, "guidance_scale": 1.0, "seed": 1, "width": 512, "height": 512,
            },
            unmapped={"Sampler": "ipndm discrete", "RNG": "cuda", "Version": "stable-diffusion.cpp"},
            **{**more, "model": {"name": "x.gguf", "hash": None}},
        ),
    ]  # fmt: skip


def mflux_samples() -> list[Sample]:
    values = {
        "mflux_version": "0.9.0", "model": "black-forest-labs/FLUX.1-dev", "base_model": "None", "seed": 42, "steps": 14,
        "guidance": 3.5, "height": 512, "width": 768, "precision": "mlx.core.bfloat16", "quantize": 8,
        "generation_time_seconds": 12.5, "created_at": "2026-06-01T12:00:00", "lora_paths": ["loras/ink.safetensors"],
        "lora_scales": [0.7], "image_path": None, "prompt": "a puffin & a <ship>", "negative_prompt": None,
    }  # fmt: skip
    comment = user_comment(b"ASCII\0\0\0" + json.dumps(values).encode())
    packet = xmp_packet(
        'xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:xmp="http://ns.adobe.com/xap/1.0/" '
        'xmlns:mflux="http://ns.mflux.ai/1.0/"',
        '<dc:description><rdf:Alt><rdf:li xml:lang="x-default">a puffin &amp; a &lt;ship&gt;</rdf:li></rdf:Alt>'
        "</dc:description><xmp:CreatorTool>MFLUX 0.9.0</xmp:CreatorTool><mflux:seed>42</mflux:seed>"
        "<mflux:steps>14</mflux:steps><mflux:guidance>None</mflux:guidance>"
        "<mflux:model>black-forest-labs/FLUX.1-dev</mflux:model><mflux:loras>ink.safetensors:0.7</mflux:loras>"
        "<mflux:generationTimeSeconds>12.5</mflux:generationTimeSeconds>",
    )
    rest = {
        k: v for k, v in values.items()
        if v is not None and k not in ("model", "base_model", "seed", "steps", "guidance", "height", "width", "prompt")
    }  # fmt: skip
    more: dict[str, Any] = {
        "format": "mflux", "source": MFLUX, "unmapped": rest,
        "request": {
            "prompt": "a puffin & a <ship>", "seed": 42, "num_inference_steps": 14, "guidance_scale": 3.5, "width": 768,
            "height": 512,
        },
        "model": {"name": "black-forest-labs/FLUX.1-dev", "hash": None, "base": "None"},
    }  # fmt: skip
    return [
        Sample(
            name="mflux", ending="png", make=lambda: png({"XML:com.adobe.xmp": packet, "IPTC": "1c0250"}, exif=comment), **more
        ),
        Sample(name="mflux-jpg", ending="jpg", make=lambda: saved(PICTURE, "JPEG", exif=comment), **more),
        Sample(
            name="mflux-xmp", ending="png", make=lambda: png({"XML:com.adobe.xmp": packet}),
            **{
                **more,
                "request": {"prompt": "a puffin & a <ship>", "seed": 42, "num_inference_steps": 14},
                "model": {"name": "black-forest-labs/FLUX.1-dev", "hash": None, "base": None},
                "unmapped": {"loras": "ink.safetensors:0.7", "generation_time_seconds": "12.5"},
            },
        ),
    ]  # fmt: skip


def mold_samples() -> list[Sample]:
    values = {
        "prompt": "a glass house ❄", "negative_prompt": "fog", "original_prompt": "house", "model": "sd15:fp16", "seed": 42,
        "steps": 25, "guidance": 7.5, "width": 512, "height": 768, "scheduler": "euler-ancestral", "lora": "ink.safetensors",
        "lora_scale": 0.5, "version": "0.8.1",
    }  # fmt: skip
    written = json.dumps(values, ensure_ascii=False)
    texts = {f"mold:{key}": str(value) for key, value in values.items() if not key.startswith("lora")}
    more: dict[str, Any] = {
        "format": "mold", "source": MOLD, "model": {"name": "sd15:fp16", "hash": None},
        "request": {
            "prompt": "a glass house ❄", "negative_prompt": "fog", "seed": 42, "num_inference_steps": 25,
            "guidance_scale": 7.5, "width": 512, "height": 768, "scheduler": "euler-a",
        },
        "unmapped": {
            "original_prompt": "house", "lora": "ink.safetensors", "lora_scale": 0.5, "version": "0.8.1",
        },
    }  # fmt: skip
    packet = xmp_packet(
        'xmlns:mold="https://github.com/utensils/mold"',
        f"<mold:prompt>{values['prompt']}</mold:prompt><mold:parameters>{escape(written)}</mold:parameters>",
    )
    xmp = (0xE1, b"http://ns.adobe.com/xap/1.0/\0" + packet.encode())
    comment = b"mold:parameters " + written.encode()
    other = {**values, "scheduler": "uni-pc"}
    return [
        Sample(name="mold", ending="png", make=lambda: png({**texts, "mold:parameters": written}), **more),
        Sample(name="mold-jpg", ending="jpg", make=lambda: jpeg_segments((0xFE, comment), xmp), **more),
        # A comment is cut where its segment ends.
        Sample(name="mold-jpg-cut", ending="jpg", make=lambda: jpeg_segments((0xFE, comment[:100]), xmp), **more),
        Sample(
            name="mold-other-scheduler", ending="png", make=lambda: png({"mold:parameters": json.dumps(other)}),
            **{
                **more,
                "request": {k: v for k, v in more["request"].items() if k != "scheduler"},
                "unmapped": {**more["unmapped"], "scheduler": "uni-pc"},
            },
        ),
    ]  # fmt: skip


SAMPLES = [
    *a1111_samples(), *comfy_samples(), *invoke_samples(), *fooocus_samples(), *novelai_samples(), *draw_things_samples(),
    *sdcpp_samples(), *mflux_samples(), *mold_samples(),
]  # fmt: skip
