#!/bin/sh
# Start a pod's supervisor with the usual variables alone, and those that ZZ_ENV names: tini lives as long as the pod, and /proc shows
# every handler what it was started with.
dropped=
ZZ_ENV=$(printf %s "$ZZ_ENV" | tr -d ' ')
for name in $(env | sed -n 's/^\([A-Za-z_][A-Za-z0-9_]*\)=.*/\1/p'); do
    case $name in {usual}) continue ;; esac
    case ,$ZZ_ENV, in *,$name,*) continue ;; esac
    unset "$name"
    dropped="$dropped $name"
done
[ -z "$dropped" ] || echo "zz run: environment variables that handlers do not get (ZZ_ENV names those that they do):$dropped" >&2
exec tini -- /opt/zztoolkit/bin/zz run "$@"
