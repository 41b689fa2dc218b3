"""What poolers cost on this machine's accelerator, beside LoRA and full fine-tuning: `python -m benchmarks.card [flags of glot cost]`.

It times one GLOT step in several forms (`benchmarks.mixing_on_card`), runs `glot cost`, and writes benchmarks/results/<card>.md.
Without flags the task is the stress test, which needs no data.
"""

import re
import sys
from pathlib import Path

import torch

from benchmarks.mixing_on_card import HEADER, measure
from glot.cli import glot_main
from glot.report.tables import markdown
from glot.states.backbone import pick_device
from glot.study.cost import machine

RESULTS = Path(__file__).parent / "results"
WORDS = ["--task=stress", "--num_train_samples=2000", "--tau=0.6", "--max_length=128"]


def main(words: list[str]) -> int:
    """Exit code of `glot cost`; 0 where there is no accelerator."""
    if not torch.accelerator.is_available():
        print("no accelerator here, so nothing is measured")
        return 0
    words = words or WORDS
    card, command = machine(pick_device("auto")), f"glot cost {' '.join(words)}"
    path = RESULTS / f"{re.sub(r'[^a-z0-9]+', '-', card.lower()).strip('-')}.md"
    parts = [f"# Cost on {card}", f"`python -m benchmarks.card {' '.join(words)}`, torch {torch.__version__}."]
    if torch.cuda.is_available():
        parts += ["## One GLOT step, forward and backward", markdown(HEADER, list(measure(with_flex=False)))]
        path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    code = glot_main(["cost", *words, "--overwrite=1", "--run_name=cost-card"])
    if code == 0:
        cost = Path("runs/cost-card/cost.md").read_text(encoding="utf-8")
        parts += [f"## Poolers, LoRA and full fine-tuning\n\n`{command}`", cost]
        path.write_text("\n\n".join(parts), encoding="utf-8")
    if path.exists():
        print(f"written: {path}")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
