"""Many runs: sweeps, statistics, reports, the demo."""
