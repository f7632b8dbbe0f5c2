-- Run once by a new Postgres. Dagster's database is POSTGRES_DB; both keep a table alembic_version, so MLflow has its own.
CREATE DATABASE mlflow;
