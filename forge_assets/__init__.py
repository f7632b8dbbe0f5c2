"""The eight phases as Dagster assets, the data they stand on, their gates and schedules."""
