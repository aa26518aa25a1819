"""What a prompt says to the text encoder."""

from sdcli.prompts.a1111 import schedule as schedule
from sdcli.prompts.a1111 import weights as weights
