#!/usr/bin/env bash
# Installs Chromium from Debian's packages, as root; prints where it is.
set -euo pipefail
if ! command -v chromium >/dev/null; then
  export DEBIAN_FRONTEND=noninteractive
  apt-get -qq update >/dev/null
  apt-get -qq install -y --no-install-recommends chromium >/dev/null
fi
command -v chromium
