"""A training says where it stands in lines that a person can read."""

from pathlib import Path

import pytest
from transformers import Trainer

from remanence.training.progress import log_line, readable
from tests.support.counting import trainer

LOGS = {
    "loss": 0.42017,
    "grad_norm": 0.1208,
    "learning_rate": 0.00695,
    "memory_loss": 0.33951,
    "memory_exact_match": 0.8331,
    "language_memory_loss": 3.823,
    "language_memory_exact_match": 0.0,
    "level": 4,
    "epoch": 0.8111,
}


@pytest.mark.parametrize(
    ("left", "said"),
    [(None, ""), (20.0, ""), (1080.0, ", 18 min left"), (9000.0, ", 2.5 h left")],
)
def test_a_line_says_step_time_losses_and_how_many_were_right(left: float | None, said: str) -> None:
    assert log_line(LOGS, 3650, 4500, left) == (
        f"step 3,650 of 4,500{said}: loss 0.4202, learning rate 0.00695, memory 0.3395 (83% right), "
        "language memory 3.823, level 4"
    )


def test_a_run_without_a_terminal_prints_one_line_a_log_and_no_bar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run: Trainer = trainer(tmp_path, 3)
    readable(run)
    run.train()
    told = capsys.readouterr()
    lines = [line for line in told.out.splitlines() if line]
    assert [line.partition(":")[0] for line in lines] == ["step 1 of 3", "step 2 of 3", "step 3 of 3"]
    assert "/3 " not in told.err
