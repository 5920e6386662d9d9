#!/bin/bash
# Unpack parts of the bundle into $ZZ_GPU_HOME (default /opt/zz-gpu): bash tests/gpu/unpack.sh A B
set -euo pipefail
home=${ZZ_GPU_HOME:-/opt/zz-gpu}
bundle=${ZZ_GPU_BUNDLE:-$(dirname "$0")/../../.gpu-bundle}
mkdir -p "$home"
for part in "$@"; do
  file="$bundle/$part/$part.tar.xz"
  if command -v xz >/dev/null; then
    xz -dc -T0 "$file" | tar -x -C "$home"
  else
    python3 -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2], filter="tar")' "$file" "$home"
  fi
  echo "unpacked $part into $home"
done
