"""`python -m remanence` is the command `remanence`."""

from remanence.cli import app

app(prog_name="remanence")
