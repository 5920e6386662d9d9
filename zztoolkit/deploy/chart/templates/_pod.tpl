{{/* The pod, as the Deployment and the InferenceService both have it. Call with (dict "root" $ "name" NAME-OF-THE-SERVER'S-CONTAINER). */}}
{{- define "zz.pod" -}}
{{- $v := .root.Values }}
{{- $name := include "zz.fullname" .root }}
serviceAccountName: {{ $name }}
automountServiceAccountToken: false
enableServiceLinks: false
terminationGracePeriodSeconds: {{ include "zz.grace" .root }}
securityContext: {{- include "zz.podSecurityContext" .root | nindent 2 }}
{{- with $v.image.pullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $v.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $v.gpu.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with $v.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with concat $v.tolerations (ternary $v.gpu.tolerations list (gt (int $v.gpu.count) 0)) }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- include "zz.affinity" .root }}
{{- if $v.topologySpread.enabled }}
topologySpreadConstraints:
  {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - topologyKey: {{ . }}
    maxSkew: 1
    whenUnsatisfiable: {{ $v.topologySpread.whenUnsatisfiable }}
    labelSelector:
      matchLabels: {{- include "zz.server" $.root | nindent 8 }}
    matchLabelKeys: [pod-template-hash]     # the old revision does not count while the new one is placed
  {{- end }}
{{- end }}
{{- with include "zz.fetch" .root }}
initContainers: {{- . | nindent 2 }}
{{- end }}
containers: {{- include "zz.serverContainer" . | trim | nindent 2 }}
volumes:
  - {name: work, emptyDir: {sizeLimit: {{ $v.server.workSize }}}}
  - {name: tmp, emptyDir: {sizeLimit: 2Gi}}
  - {name: shm, emptyDir: {medium: Memory, sizeLimit: {{ $v.sharedMemory }}}}
  {{- with include "zz.modelsVolume" .root }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- if $v.llm.name }}
  - name: llm
    {{- with $v.llm.volume }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- end }}
  {{- with include "zz.s3Secret" .root }}
  - {name: s3, secret: {secretName: {{ . }}, defaultMode: 0440}}
  {{- end }}
  {{- with $v.signatures.existingConfigMap }}
  - {name: keys, configMap: {name: {{ . }}}}
  {{- end }}
  {{- if $v.auth.enabled }}
  - {name: tokens, secret: {secretName: {{ $v.auth.existingSecret }}, defaultMode: 0440}}
  {{- end }}
  {{- if $v.tls.enabled }}
  - {name: tls, secret: {secretName: {{ include "zz.tlsSecret" .root }}, defaultMode: 0440}}
  {{- end }}
{{- end }}

{{- define "zz.serverContainer" -}}
{{- $v := .root.Values }}
- name: {{ .name }}
  image: {{ include "zz.image" .root }}
  imagePullPolicy: {{ $v.image.pullPolicy }}
  args:     # of `zz run`, the image's entry point
    - /models
    - --models={{ include "zz.models" .root }}
    - --server={{ $v.server.kind }}
    {{- with $v.server.memory }}
    - --memory={{ . }}
    {{- end }}
    - --host=0.0.0.0      # of the front, the metrics and the probes; inference and management stay on loopback
    - --work=/work
    - --endpoint-wait={{ $v.server.endpointWaitSeconds }}
    - --drain-timeout={{ include "zz.drain" .root }}
    - --startup-timeout={{ include "zz.startup" .root }}
    - --max-request-size={{ int64 $v.server.maxRequestSize }}
    - --job-queue-size={{ $v.server.jobQueueSize }}
    {{- if $v.gateway.enabled }}
    - --gateway
    {{- end }}
    {{- if $v.llm.name }}
    - --llm={{ $v.llm.name }}=/llm{{ with $v.llm.file }}/{{ . }}{{ end }}@sha256:{{ $v.llm.sha256 }}
    - --llm-engine={{ $v.llm.engine }}
    - --llm-context={{ $v.llm.contextLength }}
    - --llm-active={{ $v.llm.maxActive }}
    {{- range $v.llm.args }}
    - {{ printf "--llm-arg=%s" . | quote }}
    {{- end }}
    {{- end }}
    {{- if $v.auth.enabled }}
    - --tokens=/etc/zztoolkit/tokens/tokens
    {{- else }}
    - --no-token-auth
    {{- end }}
    {{- if $v.signatures.existingConfigMap }}
    - --keys=/etc/zztoolkit/keys
    {{- end }}
    {{- if $v.tls.enabled }}
    - --tls=/etc/zztoolkit/tls
    {{- end }}
    {{- with $v.server.extraArgs }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  env:
    - {name: HOME, value: /work}
    {{- if and $v.gateway.enabled (eq $v.output "kserve") }}
    - {name: PROTOCOL, value: v2}     # KServe reads there what its own container speaks
    {{- end }}
    {{- with $v.server.env }}
    - {name: ZZ_ENV, value: "{{ range $i, $e := . }}{{ if $i }},{{ end }}{{ $e.name }}{{ end }}"}     # zz run forgets all others
    {{- toYaml . | nindent 4 }}
    {{- end }}
  ports:
    - {name: http, containerPort: 8000}     # first, since KServe sends to the first port of its container
    - {name: metrics, containerPort: 8082}
    - {name: supervisor, containerPort: 8083}
  # Each waits for as long as the supervisor may wait for the server. TorchServe's own /ping says Healthy while models load, and with every worker dead: the supervisor looks at the workers.
  startupProbe: {httpGet: {path: /readyz, port: supervisor}, periodSeconds: 5, failureThreshold: {{ div (add (include "zz.startup" .root) 4) 5 }}, timeoutSeconds: 6}
  readinessProbe: {httpGet: {path: /readyz, port: supervisor}, periodSeconds: 5, failureThreshold: 2, timeoutSeconds: 6}
  livenessProbe: {httpGet: {path: /livez, port: supervisor}, periodSeconds: 10, failureThreshold: 6, timeoutSeconds: 6}
  terminationMessagePolicy: FallbackToLogsOnError     # its last lines say why it ended
  resources: {{- include "zz.resources" .root | nindent 4 }}
  securityContext: {{- include "zz.securityContext" .root | nindent 4 }}
  volumeMounts:
    - {name: work, mountPath: /work}
    - {name: tmp, mountPath: /tmp}
    - {name: shm, mountPath: /dev/shm}
    {{- if include "zz.modelsVolume" .root }}
    - {name: models, mountPath: /models, {{ if eq $v.store.kind "oci" }}{{ if eq $v.store.oci.mount "volume" }}subPath: models, {{ end }}{{ end }}readOnly: true}
    {{- end }}
    {{- if $v.llm.name }}
    - {name: llm, mountPath: /llm, readOnly: true}
    {{- end }}
    {{- if $v.signatures.existingConfigMap }}
    - {name: keys, mountPath: /etc/zztoolkit/keys, readOnly: true}
    {{- end }}
    {{- if $v.auth.enabled }}
    - {name: tokens, mountPath: /etc/zztoolkit/tokens, readOnly: true}     # a folder: a file mounted by itself would not follow a rotation
    {{- end }}
    {{- if $v.tls.enabled }}
    - {name: tls, mountPath: /etc/zztoolkit/tls, readOnly: true}
    {{- end }}
{{- end }}

{{- define "zz.resources" -}}
{{- $r := deepCopy .Values.resources }}
{{- if gt (int .Values.gpu.count) 0 }}
{{- $gpu := dict .Values.gpu.resource (int .Values.gpu.count) }}
{{- $r = mergeOverwrite $r (dict "limits" $gpu "requests" $gpu) }}
{{- end }}
{{- toYaml $r }}
{{- end }}

{{- define "zz.affinity" -}}
{{- if .Values.affinity }}
affinity: {{- toYaml .Values.affinity | nindent 2 }}
{{- else if and (gt (int .Values.gpu.count) 0) .Values.gpu.products }}
affinity:
  nodeAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      nodeSelectorTerms:
        - matchExpressions: [{key: nvidia.com/gpu.product, operator: In, values: {{ toJson .Values.gpu.products }}}]
{{- end }}
{{- end }}
