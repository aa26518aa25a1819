"""sdcli draws pictures from text at a command line, with Hugging Face diffusers.

What the command line can do, a program can do with the same calls:

    import sdcli

    pipeline = sdcli.load("demo", sdcli.DevicePlan(dtype="fp32"))
    request = sdcli.GenerationRequest(prompt="a red circle on a blue background", seed=7)
    for picture in pipeline.generate([request]):
        picture.image.save("circle.png")
        print(picture.record.pixels.sha256)

Names are imported when they are used: `import sdcli` alone imports neither torch nor diffusers.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from sdcli.device import DevicePlan
    from sdcli.errors import SdcliError
    from sdcli.models import ModelSpec
    from sdcli.pipeline import Pipeline, Step, load
    from sdcli.record import GeneratedImage, Record
    from sdcli.request import GenerationRequest

_ROOMS = {
    "DevicePlan": "device",
    "GeneratedImage": "record",
    "GenerationRequest": "request",
    "ModelSpec": "models",
    "Pipeline": "pipeline",
    "Record": "record",
    "SdcliError": "errors",
    "Step": "pipeline",
    "load": "pipeline",
}

__all__ = [
    "DevicePlan",
    "GeneratedImage",
    "GenerationRequest",
    "ModelSpec",
    "Pipeline",
    "Record",
    "SdcliError",
    "Step",
    "load",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _ROOMS:
        raise AttributeError(f"module 'sdcli' has no attribute {name!r}")
    return getattr(import_module(f"sdcli.{_ROOMS[name]}"), name)
