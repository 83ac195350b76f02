"""What the library and the command line choose among, apart from both: `remanence --help` must not wait for torch."""

from typing import Literal

Tier = Literal["device", "host", "disk"]
