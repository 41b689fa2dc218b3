"""Many runs: sweeps, statistics, reports and the demo."""
