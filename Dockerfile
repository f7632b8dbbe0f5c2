FROM python:3.11-slim
RUN useradd --create-home --uid 10001 forge
WORKDIR /forge
COPY pyproject.toml constraints.txt README.md LICENSE workspace.yaml ./
COPY training_core training_core
COPY forge_resources forge_resources
COPY forge_assets forge_assets
COPY dagster_home/dagster.yaml dagster_home/dagster.yaml
RUN pip install --no-cache-dir -c constraints.txt torch \
    && pip install --no-cache-dir -c constraints.txt . \
    && pip install --no-cache-dir --no-deps reasoning-gym==0.1.25 \
    && mkdir -p dagster_home/forge && chown -R forge dagster_home
USER forge
