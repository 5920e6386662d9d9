#!/bin/sh
# Brings the archives of SHA256SUMS from $URI to /store, each with its signature where there is one.
set -eu
while read -r _ file; do
  aws s3 cp --only-show-errors "$URI/$file" "/store/$file"
  aws s3 cp --only-show-errors "$URI/$file.sig" "/store/$file.sig" 2>/dev/null || true
done < /etc/zztoolkit/models/SHA256SUMS
