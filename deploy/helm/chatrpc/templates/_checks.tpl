{{/* What values.schema.json cannot say, since it takes two values to tell. */}}
{{- define "chatrpc.checks" -}}
{{- with .Values -}}
{{- $ports := dict "ports.grpc" .ports.grpc "ports.metrics" .ports.metrics -}}
{{- if .tls.secret }}{{ $_ := set $ports "ports.health" .ports.health }}{{ end -}}
{{- if .echo.enabled }}{{ $_ := set $ports "the embedded upstream's" 8080 }}{{ end -}}
{{- range $one, $port := $ports -}}
{{- range $other, $same := $ports -}}
{{- if and (lt $one $other) (eq (int $port) (int $same)) -}}
{{- fail (printf "%s and %s must differ: both are %d" $one $other (int $port)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if not (regexMatch "^[a-z][a-z0-9-]*$" (include "chatrpc.fullname" $)) -}}
{{- fail (printf "%q is no name for a Service, which is of a-z, 0-9 and -, and begins with a letter: give a fullnameOverride" (include "chatrpc.fullname" $)) -}}
{{- end -}}
{{- if not .tls.secret -}}
{{- if .tls.clientCa.secret -}}
{{- fail "tls.clientCa.secret is of no use without tls.secret" -}}
{{- end -}}
{{- if .tls.certificate.enabled -}}
{{- fail "tls.secret is needed with tls.certificate: the Secret that cert-manager is to write" -}}
{{- end -}}
{{- end -}}
{{- if and .tls.certificate.enabled (not (dig "name" "" (.tls.certificate.issuerRef | default dict))) -}}
{{- fail "tls.certificate.issuerRef is needed, with its name, such as {kind: ClusterIssuer, name: internal}" -}}
{{- end -}}
{{- if not (or .config.allow_insecure .tls.clientCa.secret) -}}
{{- fail "config.allow_insecure: false needs tls.clientCa.secret, by which callers are authenticated" -}}
{{- end -}}
{{- if .autoscaling.enabled -}}
{{- if gt (int .autoscaling.minReplicas) (int .autoscaling.maxReplicas) -}}
{{- fail "autoscaling.minReplicas is above autoscaling.maxReplicas" -}}
{{- end -}}
{{- if and (eq .autoscaling.signal "cpu") (not (or (.resources.requests | default dict).cpu (.resources.limits | default dict).cpu)) -}}
{{- fail "resources.requests.cpu is needed with the signal cpu, which is a share of it" -}}
{{- end -}}
{{- if and (eq .autoscaling.signal "keda") (not .autoscaling.prometheus) -}}
{{- fail "autoscaling.prometheus is needed with the signal keda, such as http://prometheus.monitoring:9090" -}}
{{- end -}}
{{- end -}}
{{- if .grpcRoute.enabled -}}
{{- if not .grpcRoute.parentRefs -}}
{{- fail "grpcRoute.parentRefs is needed: the Gateway that the route belongs to" -}}
{{- end -}}
{{- if and .networkPolicy.enabled (not .networkPolicy.callers) -}}
{{- fail "networkPolicy.callers is needed with grpcRoute: the pods of the Gateway, which are mostly in another namespace" -}}
{{- end -}}
{{- if and .tls.secret .grpcRoute.backendTlsPolicy.enabled (not .grpcRoute.backendTlsPolicy.caCertificateRefs) -}}
{{- fail "grpcRoute.backendTlsPolicy.caCertificateRefs is needed with tls.secret: by whom the certificate is, such as [{group: \"\", kind: ConfigMap, name: internal-ca}]" -}}
{{- end -}}
{{- end -}}
{{- if and (eq .monitoring.rules "always") (not (include "chatrpc.job" $)) -}}
{{- fail (printf "monitoring.job is needed: the rules are about one job, whose name with monitoring.scrape: %s is your Prometheus' to give" .monitoring.scrape) -}}
{{- end -}}
{{- range .extraEnv -}}
{{- if regexMatch "^CHATRPC_(CONFIG|LISTEN|HEALTH_LISTEN|METRICS_LISTEN|ALLOW_INSECURE|DRAIN__.*|TLS__.*)$" .name -}}
{{- fail (printf "extraEnv: %s is not for the environment: probes, Services and the pod's grace follow from the values" .name) -}}
{{- end -}}
{{- end -}}
{{- /* Pairs of settings, with the defaults that the service has. */ -}}
{{- range list (list "upstream" "initial_backoff_seconds" 0.5 "max_backoff_seconds" 8) (list "upstream" "max_event_bytes" 1048576 "max_response_bytes" 67108864) (list "limits" "min_deadline_seconds" 0.05 "default_deadline_seconds" 600) -}}
{{- $settings := get $.Values.config (index . 0) | default dict -}}
{{- $least := dig (index . 1) nil $settings -}}
{{- if kindIs "invalid" $least }}{{ $least = index . 2 }}{{ end -}}
{{- $most := dig (index . 3) nil $settings -}}
{{- if kindIs "invalid" $most }}{{ $most = index . 4 }}{{ end -}}
{{- if lt (float64 $most) (float64 $least) -}}
{{- fail (printf "config.%s.%s: must be at least %s, which is %v" (index . 0) (index . 3) (index . 1) $least) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}
