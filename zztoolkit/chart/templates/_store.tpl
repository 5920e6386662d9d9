{{/* The volume that holds the archives; none where they are baked in. `zz run` checks every digest, wherever they come from. */}}
{{- define "zz.modelsVolume" -}}
{{- $s := .Values.store }}
{{- if eq $s.kind "pvc" -}}
- {name: models, persistentVolumeClaim: {claimName: {{ include "zz.claim" . }}, readOnly: true}}
{{- else if and (eq $s.kind "oci") (eq $s.oci.mount "volume") -}}
- {name: models, image: {reference: {{ $s.oci.image | quote }}, pullPolicy: IfNotPresent}}
{{- else if has $s.kind (list "s3" "oci") -}}
- {name: models, emptyDir: {sizeLimit: {{ $s.sizeLimit }}}}
{{- end }}
{{- end }}

{{- define "zz.s3Secret" -}}{{ if eq .Values.store.kind "s3" }}{{ .Values.store.s3.existingSecret }}{{ end }}{{- end }}

{{/* Do init containers run scripts of ours? */}}
{{- define "zz.scripts" -}}{{ if has .Values.store.kind (list "pvc" "s3") }}yes{{ end }}{{- end }}

{{/* The init container that brings the archives, or waits for them. */}}
{{- define "zz.fetch" -}}
{{- $s := .Values.store }}
{{- if eq $s.kind "pvc" -}}
- name: await-models
  image: {{ include "zz.image" . }}
  command: [sh, /etc/zztoolkit/models/await.sh]
  env: [{name: WAIT, value: {{ $s.waitSeconds | quote }}}]
  {{- include "zz.fetchRest" (dict "root" . "readOnly" true) | nindent 2 }}
{{- else if eq $s.kind "s3" -}}
- name: fetch-models
  image: {{ $s.s3.image }}
  command: [sh, /etc/zztoolkit/models/fetch-s3.sh]
  env:
    - {name: HOME, value: /tmp}
    - {name: URI, value: {{ trimSuffix "/" $s.s3.uri | quote }}}
    {{- with $s.s3.endpoint }}
    - {name: AWS_ENDPOINT_URL, value: {{ . | quote }}}
    {{- end }}
    {{- if $s.s3.existingSecret }}
    - {name: AWS_SHARED_CREDENTIALS_FILE, value: /etc/zztoolkit/s3/credentials}     # a file: an environment is seen by more than it is meant for
    {{- end }}
  {{- include "zz.fetchRest" (dict "root" . "readOnly" false) | nindent 2 }}
{{- else if and (eq $s.kind "oci") (eq $s.oci.mount "copy") -}}
- name: fetch-models
  image: {{ $s.oci.image }}
  command: [sh, -c, cp /models/*.mar* /store/]
  {{- include "zz.fetchRest" (dict "root" . "readOnly" false) | nindent 2 }}
{{- end }}
{{- end }}

{{- define "zz.fetchRest" -}}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
resources: {{- include "zz.smallResources" .root | nindent 2 }}
securityContext: {{- include "zz.securityContext" .root | nindent 2 }}
volumeMounts:
  - {name: models, mountPath: /store, readOnly: {{ .readOnly }}}
  - {name: tmp, mountPath: /tmp}
  {{- if include "zz.s3Secret" .root }}
  - {name: s3, mountPath: /etc/zztoolkit/s3, readOnly: true}
  {{- end }}
  {{- if include "zz.scripts" .root }}
  - {name: release, mountPath: /etc/zztoolkit/models, readOnly: true}
  {{- end }}
{{- end }}
