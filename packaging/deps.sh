#!/usr/bin/env bash
# Installs the Debian packages that are missing for one purpose: build, linux, lint, generate, test or vm (see the
# Makefile). A package is missing if the program or file that is wanted of it is, wherever that came from.
#
# No service of a package is started, and those of nginx, redis and PostgreSQL are not started at the next boot either:
# tests start servers of their own.
set -euo pipefail

PATH=$PATH:/usr/sbin:/sbin # where servers are, which not everybody's PATH has
missing=()
services=()

# want PACKAGES PROGRAM... notes the packages unless all programs are there.
want() {
  local packages program
  read -ra packages <<<"$1"
  shift
  for program in "$@"; do
    command -v "$program" >/dev/null && continue
    missing+=("${packages[@]}")
    return
  done
}

# want_file PACKAGE FILE does so for a package that provides a file.
want_file() {
  [ -e "$2" ] || missing+=("$1")
}

# want_service UNIT PACKAGE PROGRAM does so for a package that would start a service.
want_service() {
  local before=${#missing[@]}
  want "$2" "$3"
  [ "${#missing[@]}" = "$before" ] || services+=("$1")
}

case ${1-} in
  build) # the loader that programs in an Occlum instance have, and mounts
    want_file musl /lib/ld-musl-x86_64.so.1
    want fuse3 fusermount3
    ;;
  linux) # the software TPM
    want "swtpm swtpm-tools" swtpm swtpm_setup
    ;;
  lint) # vet compiles the broker for EGo, which has C in it
    want "gcc libc6-dev" gcc
    ;;
  generate) # Go code from .proto files
    want protobuf-compiler protoc
    ;;
  test) # the race detector and the probe are C, and the rest are what tests compare with or run
    want "gcc libc6-dev" gcc
    want musl-tools musl-gcc
    want podman podman
    want runc runc # crun refuses machines that have cgroups of both versions
    want buildah buildah
    want mmdebstrap mmdebstrap
    want shellcheck shellcheck
    want_service nginx.service nginx-light nginx
    want_service redis-server.service redis-server redis-server
    PATH=$PATH:$(printf '%s:' /usr/lib/postgresql/*/bin)
    want_service postgresql.service postgresql initdb
    ;;
  vm)
    want qemu-system-x86 qemu-system-x86_64
    want busybox-static busybox
    want mmdebstrap mmdebstrap
    want genext2fs genext2fs
    want e2fsprogs resize2fs
    ;;
  *)
    echo "usage: packaging/deps.sh build|linux|lint|generate|test|vm" >&2
    exit 2
    ;;
esac
[ "${#missing[@]}" != 0 ] || exit 0

echo "installing Debian packages: ${missing[*]}"
if ! command -v apt-get >/dev/null; then
  echo "there is no apt-get here: install what these packages provide" >&2
  exit 1
fi
root=()
[ "$(id -u)" = 0 ] || root=(sudo)

# Debian asks policy-rc.d before it starts a service. One that is there already decides; ours goes again.
policy=/usr/sbin/policy-rc.d
ours="# packaging/deps.sh of Sesame: it removes this file when it ends"
remove_policy() {
  if grep -qsxF "$ours" "$policy"; then
    "${root[@]}" rm -f "$policy"
  fi
}
trap remove_policy EXIT
trap 'exit 130' INT
trap 'exit 143' HUP TERM
if [ ! -e "$policy" ] && [ ! -L "$policy" ]; then
  printf '#!/bin/sh\n%s\nexit 101\n' "$ours" | "${root[@]}" tee "$policy" >/dev/null
  "${root[@]}" chmod 755 "$policy"
fi
"${root[@]}" apt-get update -qq
"${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
if [ "${#services[@]}" != 0 ] && command -v systemctl >/dev/null; then
  "${root[@]}" systemctl disable --quiet "${services[@]}"
fi
