#!/bin/sh
# The folder $STORE holds the archives of SHA256SUMS and no other, whole; waits up to $WAIT seconds for that.
sums="${SUMS:-/etc/zztoolkit/models/SHA256SUMS}"
end=$(( $(date +%s) + ${WAIT:-0} ))
whole() { cd "$STORE" 2>/dev/null && sha256sum -c "$sums" >/dev/null 2>&1; }
until whole; do
  if [ "$(date +%s)" -ge "$end" ]; then
    echo "the archives in $STORE are not those of this release:" >&2
    cd "$STORE" && sha256sum -c "$sums"
    exit 1
  fi
  sleep 2
done
for file in *.mar; do
  grep -q "  $file\$" "$sums" || { echo "$STORE/$file is in no list of this release" >&2; exit 1; }
done
echo "$(grep -c . "$sums") archives, as the release names them"
