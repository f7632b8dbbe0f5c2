-- Run once, when Postgres initializes. Dagster uses POSTGRES_DB; MLflow needs its own database because both have a table
-- alembic_version.
CREATE DATABASE mlflow;
