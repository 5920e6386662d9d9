#!/bin/sh
# Waits up to $WAIT seconds until the archives of SHA256SUMS lie in $STORE, whole: an upload may be under way.
sums="${SUMS:-/etc/zztoolkit/models/SHA256SUMS}"
end=$(( $(date +%s) + ${WAIT:-0} ))
cd "${STORE:-/store}" || exit 1
until sha256sum -c "$sums" >/dev/null 2>&1; do
  if [ "$(date +%s)" -ge "$end" ]; then sha256sum -c "$sums"; exit 1; fi
  sleep 2
done
