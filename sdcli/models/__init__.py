"""Which weights draw: what a name means, and what can be known of a model without loading it."""

from sdcli.errors import BadInput as BadInput
from sdcli.models.families import FAMILIES as FAMILIES
from sdcli.models.families import Family as Family
from sdcli.models.finding import demo_folder as demo_folder
from sdcli.models.finding import find as find
from sdcli.models.folders import LEFT_OUT as LEFT_OUT
from sdcli.models.folders import folder_parts as folder_parts
from sdcli.models.hub import PATIENCE as PATIENCE
from sdcli.models.hub import fetch as fetch
from sdcli.models.hub import wanted_files as wanted_files
from sdcli.models.known import ALIASES as ALIASES
from sdcli.models.known import DEFAULT as DEFAULT
from sdcli.models.known import KnownModel as KnownModel
from sdcli.models.loading import check as check
from sdcli.models.loading import check_clip_skip as check_clip_skip
from sdcli.models.loading import check_size as check_size
from sdcli.models.loading import count_parameters as count_parameters
from sdcli.models.loading import hashes as hashes
from sdcli.models.loading import heeds_negative as heeds_negative
from sdcli.models.loading import loaded_files as loaded_files
from sdcli.models.naming import hub_name as hub_name
from sdcli.models.spec import Model as Model
from sdcli.models.spec import ModelSpec as ModelSpec
from sdcli.models.spec import Weights as Weights
from sdcli.models.weights import read_header as read_header
from sdcli.models.weights import sha256_of as sha256_of
