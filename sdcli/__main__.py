"""`python -m sdcli`."""

from sdcli.cli.main import entry

entry()
