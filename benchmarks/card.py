"""What poolers cost on this machine's accelerator, beside LoRA and full fine-tuning: `python -m benchmarks.card`.

It runs `glot cost` on the stress test, which needs no data, and writes benchmarks/results/<card>.md.
"""

import re
import sys
from pathlib import Path

import torch

from glot.cli import glot_main
from glot.states.backbone import pick_device
from glot.study.cost import machine

RESULTS = Path(__file__).parent / "results"
WORDS = ["--task=stress", "--num_train_samples=2000", "--tau=0.6", "--max_length=128", "--overwrite=1"]


def main() -> int:
    """Exit code of `glot cost`; 0 where there is no accelerator."""
    if not torch.accelerator.is_available():
        print("no accelerator here, so nothing is measured")
        return 0
    folder = Path("runs/cost-card")
    card = machine(pick_device("auto"))
    code = glot_main(["cost", *WORDS, "--run_name=cost-card"])
    if code == 0:
        name = re.sub(r"\W+", "-", card.lower()).strip("-")
        text = (folder / "cost.md").read_text(encoding="utf-8")
        how = f"`python -m benchmarks.card`, which runs `glot cost {' '.join(WORDS)}`; torch {torch.__version__}."
        head = f"# Cost on {card}\n\n{how}\n\n"
        (RESULTS / f"{name}.md").write_text(head + text, encoding="utf-8")
        print(f"written: {RESULTS / name}.md")
    return code


if __name__ == "__main__":
    sys.exit(main())
