# The image that every component runs in on Vertex AI or Kubeflow: the stack that compiles the job, and this package.
# Stack B unless asked otherwise; for stack A:
#   docker build --build-arg STACK=a --build-arg PYTHON=3.10 --build-arg DEBIAN=bookworm -t IMAGE .
# See docs/kubeflow.md.
ARG PYTHON=3.13
ARG DEBIAN=trixie
FROM python:${PYTHON}-${DEBIAN} AS build
ARG STACK=b
ENV PIP_NO_CACHE_DIR=1 UV_NO_CACHE=1 UV_LINK_MODE=copy
WORKDIR /onerank
RUN python -m venv /venv && /venv/bin/pip install --disable-pip-version-check uv==0.13.9
COPY requirements requirements
RUN /venv/bin/uv pip install --python /venv/bin/python --compile-bytecode --require-hashes \
    --build-constraints requirements/build-constraints.txt -r requirements/stack-${STACK}.lock
COPY pyproject.toml setup.py README.md LICENSE NOTICE ./
COPY onerank onerank
COPY transform transform
COPY trainer trainer
COPY serving serving
COPY tfx_pipeline tfx_pipeline
RUN /venv/bin/uv pip install --python /venv/bin/python --no-deps --no-build-isolation .

FROM python:${PYTHON}-slim-${DEBIAN}
COPY --from=build /venv /venv
# The containers are entered through TFX's own module, so Keras 3 is asked for here.
ENV PATH=/venv/bin:$PATH TF_USE_LEGACY_KERAS=0 TF_CPP_MIN_LOG_LEVEL=2
WORKDIR /tmp
ENTRYPOINT ["python", "-m", "tfx.orchestration.kubeflow.v2.container.kubeflow_v2_run_executor"]
