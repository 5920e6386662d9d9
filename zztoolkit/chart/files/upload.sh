#!/bin/sh
# Copies the archives of SHA256SUMS from $SOURCE to the folder $STORE/$SET, which appears when they are whole.
set -eu
sums="${SUMS:-/etc/zztoolkit/models/SHA256SUMS}"
[ -d "$STORE/$SET" ] && (cd "$STORE/$SET" && sha256sum -c "$sums") && exit 0
part="$STORE/.part-$SET"
rm -rf "$part" "${STORE:?}/$SET"
mkdir -p "$part"
while read -r _ file; do
  for f in "$SOURCE/$file" "$SOURCE/$file".*; do [ ! -e "$f" ] || cp "$f" "$part/"; done   # with its digest and signature
done < "$sums"
(cd "$part" && sha256sum -c "$sums")
mv "$part" "$STORE/$SET"
