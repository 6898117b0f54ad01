# The key broker. The context is what "sesame package --writer docker" puts into build/package/context/init_ra_server:
# rootfs/ holds sesame, the packed Occlum instance and, in simulated images, the simulator.
# BASE is scratch for the simulator, and the image of runtime.Dockerfile for SGX.
ARG BASE=scratch
FROM ${BASE}
COPY rootfs/ /
ENV PATH=/usr/local/bin:/opt/occlum/build/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin XDG_STATE_HOME=/tmp
WORKDIR /opt/sesame/init_ra_server
EXPOSE 5000
# Empty for the simulator, which makes namespaces and mounts.
ARG RUN_AS=
USER ${RUN_AS}
ENTRYPOINT ["sesame", "pod", "run", "--"]
CMD ["occlum", "run", "/bin/server", "0.0.0.0:5000"]
