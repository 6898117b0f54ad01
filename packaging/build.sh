#!/usr/bin/env bash
# Builds the three images of the deployment: key broker, inference server, client. See docs/packaging.md.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."

show_help() {
  cat <<'HELP'
Usage: packaging/build.sh -r REGISTRY -g TAG [OPTION]... [STEP]...

Builds REGISTRY/init_ra_server:TAG, REGISTRY/tf_demo:TAG and REGISTRY/tf_demo_client:TAG, and the manifests.

  -r REGISTRY       registry of the images
  -g TAG            tag of the images
  -d BROKER_DOMAIN  host where init finds the key broker (init-ra-server-svc)
  -p BROKER_PORT    its port (5000)
  -s hw|sim         real enclaves, in Occlum's development image (the default), or the simulator's
  -b BACKEND        where init gets its secrets from: grpc-ratls (the key broker), maa or aecs
  -u PCCS_URL       collateral service
  --model DIR       the model's version folders
  --push            push the images, too
  -h                this text

Further options and the steps are those of "sesame package -h". A step that was done is not done again.
HELP
}

for argument in "$@"; do
  case $argument in -h | --help) show_help; exit 0 ;; esac
done

make --no-print-directory -s build
case " $* " in *" -s sim "* | *" --mode sim "* | *"=sim "*) make --no-print-directory -s model ;; esac
created=$(git log -1 --format=%ct 2>/dev/null || echo 0)
exec bin/sesame package --created "$created" "$@"
