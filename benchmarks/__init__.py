"""What is measured, and how: `make bench`, or one module at a time with `python -m benchmarks.<module>`."""
