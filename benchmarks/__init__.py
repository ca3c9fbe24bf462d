"""One script per question, run as `python -m benchmarks.NAME --json FILE`; figures are ratios measured in one run."""
