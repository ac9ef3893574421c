{{/* Checks of two values together, which values.schema.json cannot express. */}}
{{- define "chatrpc.checks" -}}
{{- with .Values -}}
{{- $ports := dict "ports.grpc" .ports.grpc "ports.metrics" .ports.metrics -}}
{{- if .tls.secret }}{{ $_ := set $ports "ports.health" .ports.health }}{{ end -}}
{{- if .echo.enabled }}{{ $_ := set $ports "the embedded upstream's" 8080 }}{{ end -}}
{{- range $one, $port := $ports -}}
{{- range $other, $same := $ports -}}
{{- if and (lt $one $other) (eq (int $port) (int $same)) -}}
{{- fail (printf "%s: is %d like %s; use another port" $one (int $port) $other) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if not (regexMatch "^[a-z][a-z0-9-]*$" (include "chatrpc.fullname" $)) -}}
{{- fail (printf "fullnameOverride: %q is no valid name of a Service; use a-z, 0-9 and -, beginning with a letter" (include "chatrpc.fullname" $)) -}}
{{- end -}}
{{- if not .tls.secret -}}
{{- if .tls.clientCa.secret -}}
{{- fail "tls.clientCa.secret: has no effect without tls.secret; set tls.secret" -}}
{{- end -}}
{{- if .tls.certificate.enabled -}}
{{- fail "tls.secret: is required with tls.certificate.enabled; name the Secret that cert-manager writes" -}}
{{- end -}}
{{- end -}}
{{- if and .tls.certificate.enabled (not (dig "name" "" (.tls.certificate.issuerRef | default dict))) -}}
{{- fail "tls.certificate.issuerRef: has no name; set it, such as {kind: ClusterIssuer, name: internal}" -}}
{{- end -}}
{{- if not (or .config.allow_insecure .tls.clientCa.secret) -}}
{{- fail "config.allow_insecure: is false, but callers are not authenticated; set tls.clientCa.secret" -}}
{{- end -}}
{{- if .autoscaling.enabled -}}
{{- if gt (int .autoscaling.minReplicas) (int .autoscaling.maxReplicas) -}}
{{- fail "autoscaling.minReplicas: is above autoscaling.maxReplicas; lower it" -}}
{{- end -}}
{{- if and (eq .autoscaling.signal "cpu") (not (or (.resources.requests | default dict).cpu (.resources.limits | default dict).cpu)) -}}
{{- fail "resources.requests.cpu: is required with autoscaling.signal cpu, which is a share of it; set it" -}}
{{- end -}}
{{- if and (eq .autoscaling.signal "keda") (not .autoscaling.prometheus) -}}
{{- fail "autoscaling.prometheus: is required with autoscaling.signal keda; set it, such as http://prometheus.monitoring:9090" -}}
{{- end -}}
{{- end -}}
{{- if .grpcRoute.enabled -}}
{{- if not .grpcRoute.parentRefs -}}
{{- fail "grpcRoute.parentRefs: is empty; name the Gateway of the route" -}}
{{- end -}}
{{- if and .networkPolicy.enabled (not .networkPolicy.callers) -}}
{{- fail "networkPolicy.callers: is required with grpcRoute; select the Gateway's pods, which are usually in another namespace" -}}
{{- end -}}
{{- if and .tls.secret .grpcRoute.backendTlsPolicy.enabled (not .grpcRoute.backendTlsPolicy.caCertificateRefs) -}}
{{- fail "grpcRoute.backendTlsPolicy.caCertificateRefs: is required with tls.secret; name the certificate's authority, such as [{group: \"\", kind: ConfigMap, name: internal-ca}]" -}}
{{- end -}}
{{- end -}}
{{- if and (eq .monitoring.rules "always") (not (include "chatrpc.job" $)) -}}
{{- fail (printf "monitoring.job: is required by the rules; with monitoring.scrape %s set it to the job in your Prometheus" .monitoring.scrape) -}}
{{- end -}}
{{- range .extraEnv -}}
{{- if regexMatch "^CHATRPC_(CONFIG|LISTEN|HEALTH_LISTEN|METRICS_LISTEN|ALLOW_INSECURE|DRAIN__.*|TLS__.*)$" .name -}}
{{- fail (printf "extraEnv: %s is not allowed, because probes, Services and the pod's grace period depend on it; use the chart's values" .name) -}}
{{- end -}}
{{- end -}}
{{- /* Pairs of settings, with the service's defaults. */ -}}
{{- range list (list "upstream" "initial_backoff_seconds" 0.5 "max_backoff_seconds" 8) (list "upstream" "max_event_bytes" 20971520 "max_response_bytes" 67108864) (list "limits" "min_deadline_seconds" 0.05 "default_deadline_seconds" 600) -}}
{{- $settings := get $.Values.config (index . 0) | default dict -}}
{{- $least := dig (index . 1) nil $settings -}}
{{- if kindIs "invalid" $least }}{{ $least = index . 2 }}{{ end -}}
{{- $most := dig (index . 3) nil $settings -}}
{{- if kindIs "invalid" $most }}{{ $most = index . 4 }}{{ end -}}
{{- if lt (float64 $most) (float64 $least) -}}
{{- fail (printf "config.%s.%s: is below %s; set it to at least %v" (index . 0) (index . 3) (index . 1) $least) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}
