"""sdcli draws pictures from text at a command line, with Hugging Face diffusers."""

__version__ = "0.1.0"
