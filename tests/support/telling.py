"""One of several processes that write to one memory.

python -m tests.support.telling WRITER PLACE NAME COUNT
"""

import sys

from remanence import Store
from tests.support.stores import model_of


def main(writer: str, place: str, name: str, count: int) -> None:
    with Store.open(place, model=model_of(writer)) as store:
        memory = store.memory("shared", create=True)
        print("ready", flush=True)
        sys.stdin.readline()
        for number in range(count):
            memory.tell(f"Note {number} of {name}.", source=f"{name}-{number}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
