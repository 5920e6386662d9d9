{{/* The volume that holds the archives; none where they are baked in. `zz run` checks every digest, wherever they come from. */}}
{{- define "zz.modelsVolume" -}}
{{- $s := .Values.store }}
{{- if eq $s.kind "pvc" -}}
- {name: models, persistentVolumeClaim: {claimName: {{ include "zz.claim" . }}, readOnly: true}}
{{- else if and (eq $s.kind "oci") (eq $s.oci.mount "volume") -}}
- {name: models, image: {reference: {{ $s.image | quote }}, pullPolicy: IfNotPresent}}
{{- else if has $s.kind (list "s3" "oci") -}}
- {name: models, emptyDir: {sizeLimit: {{ $s.sizeLimit }}}}
{{- end }}
{{- end }}

{{- define "zz.s3Secret" -}}{{ if eq .Values.store.kind "s3" }}{{ .Values.store.s3.existingSecret }}{{ end }}{{- end }}

{{/* A script of ours and the archives it is for. Both stand in the pod's own template and in no ConfigMap: a pod of the revision before that starts anew must find its own. */}}
{{- define "zz.script" -}}
command: [sh, -c, {{ .root.Files.Get (print "files/" .file) | quote }}]
env:
  - {name: SHA256SUMS, value: {{ include "zz.sums" .root | trim | quote }}}
  - {name: STORE, value: /store}
{{- end }}

{{/* The init container that brings the archives, or waits for them. */}}
{{- define "zz.fetch" -}}
{{- $s := .Values.store }}
{{- if eq $s.kind "pvc" -}}
- name: await-models
  image: {{ include "zz.image" . }}
  {{- include "zz.script" (dict "root" . "file" "await.sh") | nindent 2 }}
    - {name: WAIT, value: {{ $s.waitSeconds | quote }}}
  {{- include "zz.fetchRest" (dict "root" . "readOnly" true) | nindent 2 }}
{{- else if eq $s.kind "s3" -}}
- name: fetch-models
  image: {{ $s.s3.image }}
  {{- include "zz.script" (dict "root" . "file" "fetch-s3.sh") | nindent 2 }}
    - {name: HOME, value: /tmp}
    {{- if .Values.signatures.existingConfigMap }}
    - {name: SIGNED, value: "yes"}
    {{- end }}
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
  image: {{ $s.image }}
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
{{- end }}

{{/* The Job that fills the claim. Its name holds its own digest, since a Job cannot be changed: whatever changes makes another. */}}
{{- define "zz.uploadSpec" -}}
backoffLimit: 3
ttlSecondsAfterFinished: 3600     # one that failed is made anew by the next `helm upgrade`
template:
  metadata:
    labels: {{- include "zz.labels" . | nindent 6 }}
      app.kubernetes.io/component: upload
  spec:
    restartPolicy: Never
    serviceAccountName: {{ include "zz.fullname" . }}
    automountServiceAccountToken: false
    enableServiceLinks: false
    securityContext: {{- include "zz.podSecurityContext" . | nindent 6 }}
    {{- with .Values.image.pullSecrets }}
    imagePullSecrets: {{- toYaml . | nindent 6 }}
    {{- end }}
    containers:
      - name: upload
        image: {{ default (include "zz.image" .) .Values.store.image }}
        imagePullPolicy: {{ .Values.image.pullPolicy }}
        {{- include "zz.script" (dict "root" . "file" "upload.sh") | nindent 8 }}
          - {name: SOURCE, value: /models}
        resources: {{- include "zz.smallResources" . | nindent 10 }}
        securityContext: {{- include "zz.securityContext" . | nindent 10 }}
        volumeMounts:
          - {name: claim, mountPath: /store}
    volumes:
      - {name: claim, persistentVolumeClaim: {claimName: {{ include "zz.claim" . }}}}
{{- end }}
{{- define "zz.uploadName" -}}{{ include "zz.fullname" . }}-upload-{{ include "zz.uploadSpec" . | sha256sum | trunc 12 }}{{- end }}
