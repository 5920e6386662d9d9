# Waits up to $WAIT seconds until the archives of $SHA256SUMS lie in $STORE, whole: an upload may be under way.
end=$(( $(date +%s) + ${WAIT:-0} ))
cd "$STORE" || exit 1
whole() { printf '%s\n' "$SHA256SUMS" | sha256sum -c; }
until whole >/dev/null 2>&1; do
  if [ "$(date +%s)" -ge "$end" ]; then whole; exit 1; fi
  sleep 2
done
