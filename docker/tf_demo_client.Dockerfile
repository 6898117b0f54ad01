# The inference client. The context is what "sesame package --writer docker" puts into
# build/package/context/tf_demo_client: rootfs/ holds Python, sesame, the scripts, server.crt and cat.jpg.
ARG BASE=scratch
FROM ${BASE}
COPY rootfs/ /
ENV PATH=/usr/local/bin:/usr/bin:/bin PYTHONDONTWRITEBYTECODE=1
WORKDIR /opt/sesame/client
ARG RUN_AS=65534:65534
USER ${RUN_AS}
CMD ["python3", "inception_client.py", "--help"]
