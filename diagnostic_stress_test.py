"""The distractor stress test with its own defaults: `python diagnostic_stress_test.py --help`."""

from glot.cli import stress_main

if __name__ == "__main__":
    raise SystemExit(stress_main())
