# Copies the archives of $SHA256SUMS, with what stands beside them, from $SOURCE to $STORE. Their names hold their digest: nothing that is served is replaced.
set -eu
cd "$STORE"
while read -r digest file; do
  for beside in "$SOURCE/$file".*; do [ ! -e "$beside" ] || cp "$beside" .; done      # signed anew, it has another signature
  echo "$digest  $file" | sha256sum -c >/dev/null 2>&1 && echo "$file: is there" && continue
  cp "$SOURCE/$file" ".$file.part"
  echo "$digest  .$file.part" | sha256sum -c
  mv ".$file.part" "$file"      # at once: whoever waits sees all of it, or nothing
done <<SUMS
$SHA256SUMS
SUMS
