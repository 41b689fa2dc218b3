"""`python -m glot <command>`."""

from glot.cli import glot_main

if __name__ == "__main__":
    raise SystemExit(glot_main())
