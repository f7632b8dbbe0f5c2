"""The eight phases and their data as Dagster assets, with quality gates, schedules and sensors."""
