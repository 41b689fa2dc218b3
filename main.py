"""Train and score a pooler on the token states of a frozen language model: `python main.py --help`."""

from glot.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
