"""What poolers cost on this machine's accelerator, beside LoRA and full fine-tuning: `python -m benchmarks.card`.

It times one GLOT step in several forms (`benchmarks.mixing_on_card`), runs `glot cost` on the stress test, which needs no data, and writes
benchmarks/results/<card>.md. flex_attention compiles for about a minute per size; an H200 takes some four minutes for all.
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
WORDS = ["--task=stress", "--num_train_samples=2000", "--tau=0.6", "--max_length=128", "--overwrite=1"]


def main() -> int:
    """Exit code of `glot cost`; 0 where there is no accelerator."""
    if not torch.accelerator.is_available():
        print("no accelerator here, so nothing is measured")
        return 0
    folder, card = Path("runs/cost-card"), machine(pick_device("auto"))
    path = RESULTS / f"{re.sub(r'[^a-z0-9]+', '-', card.lower()).strip('-')}.md"
    parts = [f"# Cost on {card}", f"`python -m benchmarks.card`, torch {torch.__version__}.", "## One GLOT step, forward and backward"]
    if torch.cuda.is_available():
        parts.append(markdown(HEADER, list(measure([]))))
        path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    code = glot_main(["cost", *WORDS, "--run_name=cost-card"])
    if code == 0:
        parts += [
            f"## Poolers, LoRA and full fine-tuning\n\n`glot cost {' '.join(WORDS)}`",
            (folder / "cost.md").read_text(encoding="utf-8"),
        ]
        path.write_text("\n\n".join(parts), encoding="utf-8")
    if path.exists():
        print(f"written: {path}")
    return code


if __name__ == "__main__":
    sys.exit(main())
