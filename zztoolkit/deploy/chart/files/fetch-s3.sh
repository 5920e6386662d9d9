# Brings the archives of $SHA256SUMS from $URI to $STORE, each with its signature where $SIGNED says that there is one to be asked for.
set -eu
while read -r _ file; do
  aws s3 cp --only-show-errors "$URI/$file" "$STORE/$file"
  [ -z "${SIGNED:-}" ] || aws s3 cp --only-show-errors "$URI/$file.sig" "$STORE/$file.sig"
done <<SUMS
$SHA256SUMS
SUMS
