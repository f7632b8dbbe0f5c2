# One image for the code server, the webserver, the daemon and MLflow. Building it needs no secrets.
FROM python:3.11.14-slim-bookworm

# The default torch wheel supports GPUs and is large. PyTorch's other package indexes have smaller wheels, for CPUs only
# or for another CUDA version: set --build-arg TORCH_INDEX=ADDRESS, or TORCH_INDEX in .env for docker compose.
ARG TORCH_INDEX=

WORKDIR /forge/source
COPY constraints.txt ./
RUN pip install --no-cache-dir ${TORCH_INDEX:+--no-deps --index-url "$TORCH_INDEX"} --constraint constraints.txt torch
COPY pyproject.toml README.md LICENSE ./
COPY dagster_home/dagster.yaml dagster_home/dagster.yaml
COPY training_core training_core
COPY forge_resources forge_resources
COPY forge_assets forge_assets
RUN pip install --no-cache-dir --constraint constraints.txt ".[postgres,frontier]" \
    && pip install --no-cache-dir --no-deps reasoning-gym==0.1.25

WORKDIR /forge
COPY deployment/dagster.yaml dagster_home/dagster.yaml
COPY deployment/workspace.yaml workspace.yaml
# A new named volume takes its owner from the folder that it is mounted over, so the folders are created here.
RUN useradd --create-home --uid 10001 forge \
    && mkdir state artifacts \
    && chown -R forge:forge dagster_home state artifacts
ENV DAGSTER_HOME=/forge/dagster_home FORGE_HOME=/forge/state MLFLOW_DISABLE_TELEMETRY=true
USER 10001:10001
