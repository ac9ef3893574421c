{{- define "chatrpc.name" -}}
{{ .Values.nameOverride | default .Chart.Name | trunc 58 | trimAll "-" }}
{{- end }}

{{/* At most 46 characters, because with a longer name Kubernetes cuts the hashes in the names of pods. */}}
{{- define "chatrpc.fullname" -}}
{{- $name := include "chatrpc.name" . -}}
{{- $full := printf "%s-%s" .Release.Name $name -}}
{{- if contains $name .Release.Name -}}
{{- $full = .Release.Name -}}
{{- end -}}
{{ .Values.fullnameOverride | default $full | replace "." "-" | trunc 46 | trimAll "-" }}
{{- end }}

{{- define "chatrpc.selector" -}}
app.kubernetes.io/name: {{ include "chatrpc.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "chatrpc.testSelector" -}}
app.kubernetes.io/name: {{ include "chatrpc.name" . }}-test
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{/* Labels of a resource, from [root, the user's labels]. Ours override the user's. */}}
{{- define "chatrpc.labelsAnd" -}}
{{ merge (include "chatrpc.labels" (index . 0) | fromYaml) (index . 1 | default dict) | toYaml }}
{{- end }}

{{- define "chatrpc.labels" -}}
{{ include "chatrpc.selector" . }}
app.kubernetes.io/version: {{ include "chatrpc.version" . | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* The image's tag, cut to the length of a label. */}}
{{- define "chatrpc.version" -}}
{{ .Values.image.tag | default .Chart.AppVersion | trunc 63 | trimAll "-._" }}
{{- end }}

{{- define "chatrpc.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end -}}
{{- end }}

{{- define "chatrpc.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (include "chatrpc.fullname" .) | quote }}
{{- end }}

{{/* Privileges of the release's containers: fewer than Kubernetes' "restricted" standard allows. */}}
{{- define "chatrpc.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* Start of the spec of every pod of the release. */}}
{{- define "chatrpc.pod" -}}
serviceAccountName: {{ include "chatrpc.serviceAccount" . }}
automountServiceAccountToken: false
# Otherwise a Service named chatrpc adds CHATRPC_* variables to the pod, which look like settings.
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  {{- if .Values.fixedUser }}
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  {{- end }}
  seccompProfile:
    type: RuntimeDefault
{{- with .Values.image.pullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The port for probes. With TLS it is the health port, because probes have no TLS. */}}
{{- define "chatrpc.healthPort" -}}
{{ ternary .Values.ports.health .Values.ports.grpc (not (empty .Values.tls.secret)) }}
{{- end }}

{{/* All settings: those in config, and those that the other values determine. */}}
{{- define "chatrpc.config" -}}
{{- $own := dict "listen" (printf "0.0.0.0:%v" .Values.ports.grpc) "metrics_listen" (printf "0.0.0.0:%v" .Values.ports.metrics) -}}
{{- $config := deepCopy .Values.config -}}
{{- $upstream := dict -}}
{{- if .Values.apiKey.secret -}}
{{- $_ := set $upstream "api_key_file" (printf "/etc/chatrpc/upstream/%s" .Values.apiKey.key) -}}
{{- end -}}
{{- if .Values.echo.enabled -}}
{{- range list "proxy" "proxy_file" "proxy_from_env" -}}
{{- $_ := unset $config.upstream . -}}
{{- end -}}
{{- $upstream = dict "base_url" "http://127.0.0.1:8080/v1" "name" "echo" "provider" "echo" -}}
{{- end -}}
{{- $_ := set $own "upstream" $upstream -}}
{{- if .Values.tls.secret -}}
{{- $tls := dict "cert_file" "/etc/chatrpc/tls/tls.crt" "key_file" "/etc/chatrpc/tls/tls.key" -}}
{{- if .Values.tls.clientCa.secret -}}
{{- $_ := set $tls "client_ca_file" (printf "/etc/chatrpc/client-ca/%s" .Values.tls.clientCa.key) -}}
{{- end -}}
{{- $_ := set $own "tls" $tls -}}
{{- $_ := set $own "health_listen" (printf "0.0.0.0:%v" .Values.ports.health) -}}
{{- end -}}
{{ mustMergeOverwrite $config $own | toYaml }}
{{- end }}

{{/* The full DNS name of the headless Service. */}}
{{- define "chatrpc.headless" -}}
{{ include "chatrpc.fullname" . }}-headless.{{ .Release.Namespace }}.svc.{{ .Values.clusterDomain }}
{{- end }}

{{/* The way in which Prometheus finds the metrics. */}}
{{- define "chatrpc.scrape" -}}
{{- if ne .Values.monitoring.scrape "auto" -}}
{{ .Values.monitoring.scrape }}
{{- else -}}
{{ ternary "podMonitor" "annotations" (.Capabilities.APIVersions.Has "monitoring.coreos.com/v1/PodMonitor") }}
{{- end -}}
{{- end }}

{{/* The label `job` of the release's series. Empty if the chart does not set it. */}}
{{- define "chatrpc.job" -}}
{{- if .Values.monitoring.job -}}
{{ .Values.monitoring.job }}
{{- else if has (include "chatrpc.scrape" .) (list "podMonitor" "serviceMonitor") -}}
{{ .Release.Namespace }}/{{ include "chatrpc.fullname" . }}
{{- end -}}
{{- end }}
