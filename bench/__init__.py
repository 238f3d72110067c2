"""The `bench` command: peers in the same run, on the same cores, and results as JSON."""
