"""What a run is told: flags, their choices, their checks."""
