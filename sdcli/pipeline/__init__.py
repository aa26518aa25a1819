"""The only door to torch, diffusers and transformers: probe the machine, load a model, draw."""

from sdcli.pipeline.drawing import LARGEST_PACK as LARGEST_PACK
from sdcli.pipeline.drawing import Pipeline as Pipeline
from sdcli.pipeline.drawing import Say as Say
from sdcli.pipeline.loading import load as load
from sdcli.pipeline.machine import import_libraries as import_libraries
from sdcli.pipeline.machine import out_of_memory as out_of_memory
from sdcli.pipeline.machine import probe as probe
from sdcli.pipeline.machine import versions as versions
from sdcli.pipeline.passes import Listener as Listener
from sdcli.pipeline.passes import Step as Step
from sdcli.pipeline.requests import check_files as check_files
from sdcli.pipeline.requests import check_prompt as check_prompt
from sdcli.pipeline.requests import identity as identity
from sdcli.pipeline.requests import likeness as likeness
from sdcli.pipeline.requests import located as located
from sdcli.pipeline.requests import pinned as pinned
from sdcli.pipeline.requests import resolve as resolve
from sdcli.pipeline.requests import scheduler_of as scheduler_of
from sdcli.pipeline.requests import shape as shape
