{{- define "zz.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/* Short enough for the suffixes that are added: a name of Kubernetes has 63 letters. */}}
{{- define "zz.fullname" -}}
{{- $release := ternary .Release.Name (printf "%s-%s" .Release.Name (include "zz.name" .)) (contains (include "zz.name" .) .Release.Name) }}
{{- default $release .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "zz.selector" -}}
app.kubernetes.io/name: {{ include "zz.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "zz.labels" -}}
{{ include "zz.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The server's pods alone: the upload's and the test's have the selector too. */}}
{{- define "zz.server" -}}
{{ include "zz.selector" . }}
app.kubernetes.io/component: server
{{- end }}

{{- define "zz.image" -}}
{{- $i := .Values.image }}
{{- if $i.digest }}{{ $i.repository }}@{{ $i.digest }}{{ else }}{{ $i.repository }}:{{ default .Chart.AppVersion $i.tag }}{{ end }}
{{- end }}

{{/* What sha256sum reads; and the name of a set of archives, equal for equal archives. */}}
{{- define "zz.sums" -}}
{{- range .Values.models }}{{ .sha256 }}  {{ .file }}
{{ end }}
{{- end }}
{{- define "zz.set" -}}{{ include "zz.sums" . | sha256sum | trunc 12 }}{{- end }}

{{/* As `zz run --models` takes them. */}}
{{- define "zz.models" -}}
{{- range $i, $m := .Values.models }}{{ if $i }},{{ end }}{{ $m.name }}={{ $m.file }}@sha256:{{ $m.sha256 }}{{ end }}
{{- end }}

{{- define "zz.claim" -}}{{ default (printf "%s-models" (include "zz.fullname" .)) .Values.store.pvc.existingClaim }}{{- end }}
{{- define "zz.tlsSecret" -}}{{ default (printf "%s-tls" (include "zz.fullname" .)) .Values.tls.existingSecret }}{{- end }}
{{/* Of the server, from inside the cluster; KServe makes a Service of its own. */}}
{{- define "zz.host" -}}{{ include "zz.fullname" . }}{{ ternary "-predictor" "" (eq .Values.output "kserve") }}{{- end }}
{{- define "zz.url" -}}{{ include "zz.scheme" . }}://{{ include "zz.host" . }}.{{ .Release.Namespace }}.svc:{{ ternary 80 .Values.service.port (eq .Values.output "kserve") }}{{- end }}
{{- define "zz.scheme" -}}{{ ternary "https" "http" .Values.tls.enabled }}{{- end }}

{{/* A language model's answers take longer than a prediction, and its weights longer to load. */}}
{{- define "zz.drain" -}}{{ ternary (max .Values.server.drainSeconds .Values.llm.drainSeconds) .Values.server.drainSeconds (ne .Values.llm.name "") }}{{- end }}
{{- define "zz.startup" -}}{{ ternary (max .Values.server.startupSeconds .Values.llm.startupSeconds) .Values.server.startupSeconds (ne .Values.llm.name "") }}{{- end }}

{{/* Endpoint wait, drain, the slowest request, and 20 s for what ends a process. */}}
{{- define "zz.grace" -}}
{{- $drain := include "zz.drain" . }}
{{- with .Values.server }}{{ add .endpointWaitSeconds $drain (ceil .p99Seconds) 20 }}{{ end }}
{{- end }}

{{- define "zz.securityContext" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
readOnlyRootFilesystem: true
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "zz.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* What the small containers get: they copy, hash, or send a request. */}}
{{- define "zz.smallResources" -}}
requests: {cpu: 250m, memory: 128Mi}
limits: {cpu: "1", memory: 256Mi}
{{- end }}

{{/* Values that a schema cannot compare. */}}
{{- define "zz.check" -}}
{{- $v := .Values }}
{{- if not (or $v.models $v.llm.name) }}{{ fail "models is empty: `zz deploy render` fills it from the archives" }}{{ end }}
{{- if and (not $v.models) (ne $v.store.kind "image") }}{{ fail (printf "store.kind is %s, and models is empty: nothing comes from there" $v.store.kind) }}{{ end }}
{{- if and $v.llm.name (not $v.llm.volume) }}{{ fail "llm.volume: name the claim, or the image (llm.Dockerfile makes it), that holds the weights" }}{{ end }}
{{- if and $v.llm.name (not $v.llm.sha256) }}{{ fail "llm.sha256: `zz deploy render --llm` computes it from the weights" }}{{ end }}
{{- if and $v.llm.name (eq $v.llm.engine "vllm") (eq (int $v.gpu.count) 0) }}{{ fail "llm.engine vllm needs a GPU: set gpu.count" }}{{ end }}
{{- if and $v.llm.args (ne $v.llm.engine "vllm") }}{{ fail (printf "llm.args are vLLM's, and llm.engine is %s" $v.llm.engine) }}{{ end }}
{{- $names := list }}{{ range $v.models }}{{ $names = append $names .name }}{{ end }}
{{- if and (ne $v.server.kind "torchserve") (ne (len $names) (len (uniq $names))) }}{{ fail (printf "models: %s serves one version of a model in a pod; a release for each, or server.kind=torchserve" $v.server.kind) }}{{ end }}
{{- if and $v.server.memory (eq $v.server.kind "torchserve") }}{{ fail "server.memory: torchserve loads all models at the start; server.kind mosec or ray loads them on demand" }}{{ end }}
{{- if and $v.server.memory (not $v.models) }}{{ fail "server.memory: no models to load on demand" }}{{ end }}
{{- if and $v.auth.enabled (not $v.auth.existingSecret) }}{{ fail "auth.existingSecret: name the Secret whose key `tokens` holds one token a line (kubectl create secret generic NAME --from-file=tokens), or set auth.enabled=false behind a gateway that authenticates" }}{{ end }}
{{- if and $v.tls.enabled (not $v.tls.existingSecret) (not $v.tls.certManager.enabled) }}{{ fail "tls.enabled: give tls.existingSecret, or tls.certManager.enabled with an issuer" }}{{ end }}
{{- if and (has (toString $v.strategy.maxUnavailable) (list "0" "0%")) (has (toString $v.strategy.maxSurge) (list "0" "0%")) }}{{ fail "strategy: maxUnavailable and maxSurge are both 0, so no pod could ever be replaced" }}{{ end }}
{{- if and $v.route.enabled (not $v.route.parentRefs) }}{{ fail "route.parentRefs: name the Gateway that the route belongs to" }}{{ end }}
{{- if and (gt (int $v.route.canary.weight) 0) (not $v.route.canary.service) }}{{ fail "route.canary.service: name the Service of the canary release" }}{{ end }}
{{- if and $v.store.image (not (has $v.store.kind (list "oci" "pvc"))) }}{{ fail (printf "store.image is copied from where store.kind is oci or pvc, and it is %s" $v.store.kind) }}{{ end }}
{{- if and (eq $v.store.kind "oci") (not $v.store.image) }}{{ fail "store.image: name the image that models.Dockerfile made (zz deploy render --models-image)" }}{{ end }}
{{- if and $v.tls.certManager.enabled (not $v.tls.certManager.issuer.name) }}{{ fail "tls.certManager.issuer.name: name the Issuer or ClusterIssuer that signs" }}{{ end }}
{{- if and (eq $v.output "deployment") (eq $v.autoscaling.kind "keda") (not $v.monitoring.serviceMonitor.enabled) }}{{ fail "autoscaling.kind keda asks Prometheus: set monitoring.serviceMonitor.enabled, or its query finds no series" }}{{ end }}
{{- if gt (int $v.autoscaling.minReplicas) (int $v.autoscaling.maxReplicas) }}{{ fail "autoscaling: minReplicas is more than maxReplicas" }}{{ end }}
{{- end }}

{{/* What picks this release's series: labels that a ServiceMonitor gives them. */}}
{{- define "zz.series" -}}namespace="{{ .Release.Namespace }}",service="{{ include "zz.fullname" . }}-metrics"{{- end }}

{{- define "zz.queueQuery" -}}
{{- $of := include "zz.series" . -}}
sum(rate(ts_queue_latency_microseconds{ {{- $of -}} }[2m])) / clamp_min(sum(rate(ts_inference_requests_total{ {{- $of -}} }[2m])), 0.001) / 1000 or 0 * sum(up{ {{- $of -}} })
{{- end }}

{{/* In all replicas; KEDA divides it by their number. */}}
{{- define "zz.waitingQuery" -}}
{{- $of := include "zz.series" . -}}
sum(zz_queued_requests{ {{- $of -}} ,model_name="{{ .Values.llm.name }}"}) or 0 * sum(up{ {{- $of -}} })
{{- end }}

{{/* Up at once, down slowly: a model takes long to load. */}}
{{- define "zz.behavior" -}}
scaleUp: {stabilizationWindowSeconds: 0, policies: [{type: Percent, value: 100, periodSeconds: 60}, {type: Pods, value: 2, periodSeconds: 60}], selectPolicy: Max}
scaleDown: {stabilizationWindowSeconds: {{ .Values.autoscaling.scaleDownWindowSeconds }}, policies: [{type: Pods, value: 1, periodSeconds: 60}]}
{{- end }}

{{/* The port of the s3 endpoint: the one it names, else its scheme's. */}}
{{- define "zz.s3Port" -}}
{{- $host := (urlParse .Values.store.s3.endpoint).host }}
{{- if contains ":" $host }}{{ last (splitList ":" $host) }}{{ else }}{{ ternary 80 443 (hasPrefix "http://" .Values.store.s3.endpoint) }}{{ end }}
{{- end }}

{{/* files/rules.yaml for this release. Words are replaced, since Prometheus' own templates look like Helm's. */}}
{{- define "zz.rules" -}}
{{- $m := .Values.monitoring }}
{{- $name := include "zz.fullname" . }}
{{- $pod := printf "%s-(predictor-)?[a-z0-9]+-[a-z0-9]{5}" $name }}     {{- /* what a Deployment calls its pods; not those of a release whose name goes on */}}
{{- $pods := printf "namespace=\"%s\",pod=~\"%s\"" .Release.Namespace $pod }}
{{- $words := list
  "$OF" (include "zz.series" .)
  "$LABELS" (printf "{namespace: %s, service: %s-metrics}" .Release.Namespace $name)
  "$AVAILABILITY" (toString $m.objectives.availability) "$LATENCY" (toString $m.objectives.latencySeconds) "$QUEUE" (toString $m.objectives.queueSeconds)
  "$FIRST_TOKEN" (toString $m.objectives.firstTokenSeconds)
  "$JOBS" (toString .Values.server.jobQueueSize)
  "$GPU_OF" (printf "%s=\"%s\",%s=~\"%s\"" $m.gpu.namespaceLabel .Release.Namespace $m.gpu.podLabel $pod)
  "$GPU_POD" $m.gpu.podLabel "$GPU_NAMESPACE" $m.gpu.namespaceLabel
  "$CONTAINER" (printf "%s,container=~\"server|kserve-container\"" $pods)
  "$PODS" $pods }}
{{- $text := .Files.Get "files/rules.yaml" }}
{{- range $pair := chunk 2 $words }}{{ $text = replace (first $pair) (last $pair) $text }}{{ end }}
{{- $text }}
{{- end }}
