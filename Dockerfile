# One image for the code server, the web server, the daemon and MLflow. Nothing secret is needed to build it.
FROM python:3.11.14-slim-bookworm

# The default build of torch runs on GPUs and is large. Its project has indexes of smaller builds, for CPUs alone or for
# another CUDA: --build-arg TORCH_INDEX=ADDRESS, in .env for docker compose.
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
# A new named volume takes its owner from the folder that it covers.
RUN useradd --create-home --uid 10001 forge \
    && mkdir state artifacts \
    && chown -R forge:forge dagster_home state artifacts
ENV DAGSTER_HOME=/forge/dagster_home FORGE_HOME=/forge/state MLFLOW_DISABLE_TELEMETRY=true
USER 10001:10001
