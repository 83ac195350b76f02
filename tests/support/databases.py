"""Databases for tests of the store: SQLite in a folder, and PostgreSQL with a private cluster where it is installed."""

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from glob import glob
from pathlib import Path

import pytest


def _program(name: str) -> str | None:
    found = [*glob(f"/usr/lib/postgresql/*/bin/{name}"), shutil.which(name)]
    return next((one for one in sorted(filter(None, found), reverse=True)), None)


@contextmanager
def postgres(folder: Path) -> Iterator["Cluster"]:
    """A cluster in a folder, which listens on a socket there only. Skips the test where PostgreSQL is not installed."""
    if _program("initdb") is None or _program("pg_ctl") is None:
        pytest.skip("PostgreSQL is not installed")
    cluster = Cluster(folder)
    try:
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(cluster.folder, ignore_errors=True)


class Cluster:
    def __init__(self, folder: Path) -> None:
        # The socket's path must be short; the server refuses to run as root.
        self.folder = Path("/tmp") / f"pg-{os.getpid()}-{abs(hash(folder)) % 10**6}"
        self.folder.mkdir()
        self._user = "nobody" if os.getuid() == 0 else None
        if self._user is not None:
            about = pwd.getpwnam(self._user)
            os.chown(self.folder, about.pw_uid, about.pw_gid)
        self.data = self.folder / "data"
        self._run("initdb", "-D", str(self.data), "-U", "tester", "-A", "trust", "-E", "UTF8", "--locale=C", "-N")
        self.start()

    def start(self) -> None:
        options = f"-k {self.folder} -c listen_addresses='' -c max_connections=60"
        self._run("pg_ctl", "-D", str(self.data), "-w", "-l", str(self.folder / "log"), "-o", options, "start")

    def stop(self, how: str = "immediate") -> None:
        self._run("pg_ctl", "-D", str(self.data), "-m", how, "-w", "stop", check=False)

    def url(self, name: str = "postgres") -> str:
        if name != "postgres":
            self._run("createdb", "-h", str(self.folder), "-U", "tester", name, check=False)
        return f"postgresql+psycopg://tester@/{name}?host={self.folder}"

    def _run(self, program: str, *words: str, check: bool = True) -> None:
        command = [str(_program(program)), *words]
        done = subprocess.run(command, user=self._user, cwd=self.folder, capture_output=True, text=True)
        if check and done.returncode:
            raise RuntimeError(f"{program}: {done.stdout}{done.stderr}")
