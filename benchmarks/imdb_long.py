"""Long reviews of IMDB as files of one's own: `python -m benchmarks.imdb_long DATA_DIR FOLDER`.

The first reviews of each class with more than `WORDS` words, for training and for evaluation. By MiniLM's tokeniser 1,799 of 1,800 are
longer than 512 tokens.
"""

import csv
import sys
from pathlib import Path

from glot.data.tables import load_hub_examples

WORDS = 450
PER_CLASS = {"train": 600, "test": 300}


def main(data_dir: Path, folder: Path) -> int:
    """Writes train.csv and test.csv with the columns text and label."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, most in PER_CLASS.items():
        examples = load_hub_examples("imdb", split, data_dir, None)
        rows = [(text, int(label)) for text, label in zip(examples.columns[0], examples.labels, strict=True) if len(text.split()) > WORDS]
        kept = [row for kind in (0, 1) for row in [row for row in rows if row[1] == kind][:most]]
        with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([("text", "label"), *kept])
        print(f"{folder / split}.csv: {len(kept)} reviews")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
