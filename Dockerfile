# compress-onnx for the CPU, of Debian's Python and PyPI's packages.
#
#   docker build -t compress-onnx .
#   docker run --rm -v "$PWD:/work" compress-onnx run models/encoder.yaml -o bundle
FROM debian:trixie-slim

RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

COPY . /source
RUN python3 -m venv /opt/compress-onnx \
    && /opt/compress-onnx/bin/pip install --no-cache-dir "/source[cpu,pictures,deploy]" \
    && rm -rf /source

# Nobody in particular: what is written belongs to whoever mounts /work.
RUN useradd --create-home user
USER user
WORKDIR /work
ENV COMPRESS_ONNX_CACHE=/tmp/compress-onnx
ENTRYPOINT ["/opt/compress-onnx/bin/compress-onnx"]
CMD ["--help"]
