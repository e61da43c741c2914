# In a checkout of tfpar: tfpar kubernetes --dockerfile > Dockerfile; docker build -t registry.example/tfpar:1 .
FROM python:$python-slim
COPY . /opt/tfpar
# and-cuda brings the libraries for NVIDIA GPUs, some gigabytes; without it the image is for CPUs.
RUN pip install --no-cache-dir "/opt/tfpar[and-cuda]" \
    $pins
RUN useradd --uid 1000 --create-home tfpar && mkdir /tfpar && chown 1000:1000 /tfpar
USER 1000:1000
WORKDIR /tfpar
CMD ["tfpar", "doctor"]
