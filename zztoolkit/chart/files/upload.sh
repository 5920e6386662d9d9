#!/bin/sh
# Copies the archives of SHA256SUMS, with what stands beside them, from $SOURCE to $STORE. Their names hold their digest: nothing that is served is replaced.
set -eu
sums="${SUMS:-/etc/zztoolkit/models/SHA256SUMS}"
cd "$STORE"
while read -r digest file; do
  echo "$digest  $file" | sha256sum -c >/dev/null 2>&1 && echo "$file: is there" && continue
  cp "$SOURCE/$file" ".$file.part"
  echo "$digest  .$file.part" | sha256sum -c
  for beside in "$SOURCE/$file".*; do [ ! -e "$beside" ] || cp "$beside" .; done
  mv ".$file.part" "$file"      # at once: whoever waits sees all of it, or nothing
done < "$sums"
