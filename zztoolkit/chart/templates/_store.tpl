{{/* The volume that holds the archives; none where they are baked in. */}}
{{- define "zz.modelsVolume" -}}
{{- $s := .Values.store }}
{{- if eq $s.kind "pvc" }}
- {name: models, persistentVolumeClaim: {claimName: {{ include "zz.claim" . }}, readOnly: true}}
{{- else if and (eq $s.kind "oci") (eq $s.oci.mount "volume") }}
- {name: models, image: {reference: {{ $s.oci.image | quote }}, pullPolicy: IfNotPresent}}
{{- else if has $s.kind (list "s3" "oci") }}
- {name: models, emptyDir: {sizeLimit: {{ $s.sizeLimit }}}}
{{- end }}
{{- end }}

{{/* Exactly this release's archives, in /models, read-only. */}}
{{- define "zz.modelsMount" -}}
{{- $s := .Values.store }}
{{- if eq $s.kind "pvc" -}}
{name: models, mountPath: /models, subPath: {{ include "zz.set" . | quote }}, readOnly: true}
{{- else if and (eq $s.kind "oci") (eq $s.oci.mount "volume") -}}
{name: models, mountPath: /models, subPath: models, readOnly: true}
{{- else if has $s.kind (list "s3" "oci") -}}
{name: models, mountPath: /models, readOnly: true}
{{- end }}
{{- end }}

{{/* The init container that brings the archives. */}}
{{- define "zz.fetch" -}}
{{- $s := .Values.store }}
{{- if eq $s.kind "s3" }}
- name: fetch-models
  image: {{ $s.s3.image }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  command: [sh, /etc/zztoolkit/models/fetch-s3.sh]
  env:
    - {name: HOME, value: /tmp}
    - {name: URI, value: {{ trimSuffix "/" $s.s3.uri | quote }}}
    {{- with $s.s3.endpoint }}
    - {name: AWS_ENDPOINT_URL, value: {{ . | quote }}}
    {{- end }}
  {{- with $s.s3.existingSecret }}
  envFrom: [{secretRef: {name: {{ . }}}}]
  {{- end }}
  {{- include "zz.fetchRest" . | nindent 2 }}
{{- else if and (eq $s.kind "oci") (eq $s.oci.mount "copy") }}
- name: fetch-models
  image: {{ $s.oci.image }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  command: [sh, -c, cp /models/*.mar* /store/]
  {{- include "zz.fetchRest" . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "zz.fetchRest" -}}
resources: {{- include "zz.smallResources" . | nindent 2 }}
securityContext: {{- include "zz.securityContext" . | nindent 2 }}
volumeMounts:
  - {name: models, mountPath: /store}
  - {name: tmp, mountPath: /tmp}
  - {name: release, mountPath: /etc/zztoolkit/models, readOnly: true}
{{- end }}

{{/* Nothing is served that is not, byte for byte, what the release names. A claim is waited for: its upload may be under way. */}}
{{- define "zz.checkModels" -}}
- name: check-models
  image: {{ include "zz.image" . }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  command: [sh, /etc/zztoolkit/models/check.sh]
  env:
    - {name: STORE, value: {{ ternary (printf "/claim/%s" (include "zz.set" .)) "/models" (eq .Values.store.kind "pvc") | quote }}}
    - {name: WAIT, value: {{ ternary .Values.store.waitSeconds 0 (eq .Values.store.kind "pvc") | int | quote }}}
  resources: {{- include "zz.smallResources" . | nindent 4 }}
  securityContext: {{- include "zz.securityContext" . | nindent 4 }}
  volumeMounts:
    - {name: release, mountPath: /etc/zztoolkit/models, readOnly: true}
    {{- if eq .Values.store.kind "pvc" }}
    - {name: models, mountPath: /claim, readOnly: true}
    {{- else if include "zz.modelsMount" . }}
    - {{ include "zz.modelsMount" . }}
    {{- end }}
{{- end }}
