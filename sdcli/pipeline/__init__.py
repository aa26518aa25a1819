"""The only door to torch, diffusers and transformers: probe the machine, load a model, draw.

What is wanted before anything is loaded is here at once; the rest is imported when it is used.
"""

from typing import TYPE_CHECKING, Any

from sdcli.pipeline.requests import LARGEST_PACK as LARGEST_PACK
from sdcli.pipeline.requests import check_files as check_files
from sdcli.pipeline.requests import check_prompt as check_prompt
from sdcli.pipeline.requests import check_recorded as check_recorded
from sdcli.pipeline.requests import final_size as final_size
from sdcli.pipeline.requests import identity as identity
from sdcli.pipeline.requests import likeness as likeness
from sdcli.pipeline.requests import located as located
from sdcli.pipeline.requests import pinned as pinned
from sdcli.pipeline.requests import resolve as resolve
from sdcli.pipeline.requests import scheduler_of as scheduler_of
from sdcli.pipeline.requests import shape as shape

if TYPE_CHECKING:
    from sdcli.models.hub import Say as Say
    from sdcli.pipeline.drawing import Pipeline as Pipeline
    from sdcli.pipeline.hearing import Listener as Listener
    from sdcli.pipeline.hearing import Step as Step
    from sdcli.pipeline.hearing import Together as Together
    from sdcli.pipeline.loading import load as load
    from sdcli.pipeline.machine import import_libraries as import_libraries
    from sdcli.pipeline.machine import out_of_memory as out_of_memory
    from sdcli.pipeline.machine import probe as probe
    from sdcli.pipeline.machine import versions as versions

_ROOMS = {
    "Listener": "hearing",
    "Pipeline": "drawing",
    "Step": "hearing",
    "Together": "hearing",
    "import_libraries": "machine",
    "load": "loading",
    "out_of_memory": "machine",
    "probe": "machine",
    "versions": "machine",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _ROOMS:
        raise AttributeError(f"module 'sdcli.pipeline' has no attribute {name!r}")
    return getattr(import_module(f"sdcli.pipeline.{_ROOMS[name]}"), name)
