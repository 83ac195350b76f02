"""Where this runs: device, versions, the stamp of a run, the user's cache, and what other packages report. No torch."""

import logging
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def device_name(device: "torch.device") -> str:
    """A GPU by its name; a CPU by its name and the threads that torch uses."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{cpu_names()[0]} with {threads} thread{'s' * (threads > 1)}"


def cpu_names() -> list[str]:
    """Of each core, on Linux; elsewhere one name for all."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names or [platform.processor() or platform.machine()]


def versions() -> dict[str, str]:
    """Of this package, of what it stands on, and of Python."""
    import torch
    import transformers

    from remanence import __version__

    return {
        "remanence": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def run_stamp(command: str, device: "torch.device") -> dict[str, Any]:
    """What figures are published with: the command that takes them again, date and time, device and versions."""
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return {"command": command, "date": date, "device": device_name(device), "versions": versions()}


def cache_folder() -> Path:
    """Where is kept what can be made or fetched again: `REMANENCE_CACHE`, else `remanence` in the user's cache."""
    if own := os.environ.get("REMANENCE_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "remanence"


# transformers and peft import torchao where it is installed. It reports each of its libraries that this machine cannot
# load, and torch warns of how it registers its enums.
_NOISE = {"torchao": "Failed to load ", "torch.utils._pytree": "%s is an Enum subclass"}


class _Without(logging.Filter):
    """Drops messages that begin like this."""

    def __init__(self, start: str) -> None:
        super().__init__()
        self._start = start

    def filter(self, record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith(self._start)


def hush_torchao() -> None:
    """Drop what the import of torchao logs and nobody can do anything about, and nothing else."""
    for name, start in _NOISE.items():
        logging.getLogger(name).addFilter(_Without(start))
