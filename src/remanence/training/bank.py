"""What earlier steps of a run wrote: it fills pools, stands in front of the next writes, and is retrieved by mistake.

A slot of a memory of a hundred thousand is mistaken for others that a few thousand do not hold, so the bank is about as
large as the memory to come. Only what is hardest to tell from what is asked about takes part in a step.
"""

import torch
from torch import Tensor

from remanence.memory.scoring import mean_sigmoid


class Bank:
    """The newest chunks of a run: at most `capacity`, or those of one step where that is more.

    Attributes:
        slots: `[L, C, K, d]` float32, in no order.
        keys: `[L, C, K, P]`, their retrieval keys as they were when written; P is 0 without a retriever.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.slots, self.keys = torch.empty(0), torch.empty(0)
        self._count = self._next = 0

    def __len__(self) -> int:
        return self._count

    @torch.no_grad()
    def add(self, made: Tensor, keys: Tensor) -> None:  # [M, L, K, d], [M, L, K, P]
        """Take a step's chunks in; the oldest go. Copies nothing of what is there."""
        parts = [part.transpose(0, 1).float() for part in (made, keys)]
        count = len(made)
        if count >= self.capacity:
            self.slots, self.keys = (part.clone() for part in parts)
            self._count, self._next = count, 0
            return
        if self.slots.shape[1:2] != (self.capacity,):
            self.slots, self.keys = (part.new_empty(len(part), self.capacity, *part.shape[2:]) for part in parts)
            self._count = self._next = 0
        at = (self._next + torch.arange(count, device=made.device)) % self.capacity
        self.slots[:, at], self.keys[:, at] = parts
        self._next = (self._next + count) % self.capacity
        self._count = min(self.capacity, self._count + count)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:  # [min(count, C)], numbers of chunks
        """Different chunks, in no order."""
        return torch.randperm(self._count, generator=generator)[:count]

    def chunks(self, numbers: Tensor) -> Tensor:  # [n] -> [n, L, K, d]
        return self.slots[:, numbers.to(self.slots.device)].transpose(0, 1)

    @torch.no_grad()
    def hardest(
        self, layer: int, queries: Tensor, counted: Tensor, each: int, known: Tensor
    ) -> tuple[Tensor, Tensor]:  # [H, d], [H]
        """Slots that any row scores among its `each` best, as a read scores them, and their numbers: K to a chunk.

        None of the chunks `known` is among them.

        `queries` `[R, T, P]`, of which those tokens count that `counted` `[R, T]` says.
        """
        keys = self.keys[layer, : self._count].flatten(0, 1)  # [C · K, P]
        asking = [row[tokens].float() for row, tokens in zip(queries, counted, strict=True)]
        scores = torch.stack([mean_sigmoid(row, keys) for row in asking]).unflatten(1, (self._count, -1))
        scores[:, known.to(scores.device)] = -torch.inf
        free = (self._count - len(known)) * scores.shape[2]
        best = scores.flatten(1).topk(min(each, free), dim=1, sorted=False).indices.unique()
        return self.slots[layer, : self._count].flatten(0, 1)[best], best

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors only."""
        filled = slice(0, self._count)
        parts = {"slots": self.slots[:, filled], "keys": self.keys[:, filled]}
        return {**{name: part.contiguous().cpu() for name, part in parts.items()}, "next": torch.tensor(self._next)}

    def load_state_dict(self, state: dict[str, Tensor], device: torch.device) -> None:
        slots, keys = (state[name].to(device) for name in ("slots", "keys"))
        self._count = self._next = 0
        self.add(slots.transpose(0, 1), keys.transpose(0, 1))
        self._next = int(state["next"])
