# What an enclave's image needs below it on a machine with SGX: Occlum's run time, Intel's PSW and the DCAP quote
# provider. It is the base of the other Dockerfiles in hardware mode, and of "sesame package --base":
#
#   docker build -f docker/runtime.Dockerfile -t REGISTRY/occlum-runtime:0.31.0 docker
#
# Unproven here: it needs the package archives of Intel and of Occlum.
FROM ubuntu:22.04
ARG OCCLUM_VERSION=0.31.0
ENV DEBIAN_FRONTEND=noninteractive
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates curl gnupg \
 && curl -fsSL https://download.01.org/intel-sgx/sgx_repo/ubuntu/intel-sgx-deb.key \
      | gpg --dearmor -o /usr/share/keyrings/intel-sgx.gpg \
 && echo "deb [arch=amd64 signed-by=/usr/share/keyrings/intel-sgx.gpg] https://download.01.org/intel-sgx/sgx_repo/ubuntu jammy main" \
      > /etc/apt/sources.list.d/intel-sgx.list \
 && curl -fsSL https://occlum.io/occlum-package-repos/debian/public.key \
      | gpg --dearmor -o /usr/share/keyrings/occlum.gpg \
 && echo "deb [arch=amd64 signed-by=/usr/share/keyrings/occlum.gpg] https://occlum.io/occlum-package-repos/debian jammy main" \
      > /etc/apt/sources.list.d/occlum.list \
 && apt-get update \
 && apt-get install -y --no-install-recommends occlum-runtime=${OCCLUM_VERSION}* \
      libsgx-urts libsgx-uae-service libsgx-dcap-ql libsgx-dcap-default-qpl libsgx-dcap-quote-verify \
 && apt-get purge -y --auto-remove curl gnupg \
 && rm -rf /var/lib/apt/lists/*
# "sesame pod run --qcnl /etc/sgx_default_qcnl.conf" writes the address of the PCCS into this file as an ordinary user.
RUN touch /etc/sgx_default_qcnl.conf && chmod 0666 /etc/sgx_default_qcnl.conf
