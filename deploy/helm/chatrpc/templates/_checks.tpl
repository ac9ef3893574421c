{{/* What values.schema.json cannot say, since it takes two values to tell. */}}
{{- define "chatrpc.checks" -}}
{{- with .Values -}}
{{- $ports := list (int .ports.grpc) (int .ports.health) (int .ports.metrics) -}}
{{- if ne (len (uniq $ports)) 3 -}}
{{- fail "ports: must differ from each other" -}}
{{- end -}}
{{- if not .tls.secret -}}
{{- if .tls.clientCa.secret -}}
{{- fail "tls.clientCa.secret is of no use without tls.secret" -}}
{{- end -}}
{{- if .tls.certificate.enabled -}}
{{- fail "tls.secret is needed with tls.certificate: the Secret that cert-manager is to write" -}}
{{- end -}}
{{- end -}}
{{- if and .tls.certificate.enabled (not .tls.certificate.issuerRef) -}}
{{- fail "tls.certificate.issuerRef is needed, such as {kind: ClusterIssuer, name: internal}" -}}
{{- end -}}
{{- if not (or .config.allow_insecure .tls.clientCa.secret) -}}
{{- fail "config.allow_insecure: false needs tls.clientCa.secret, by which callers are authenticated" -}}
{{- end -}}
{{- if .autoscaling.enabled -}}
{{- if gt (int .autoscaling.minReplicas) (int .autoscaling.maxReplicas) -}}
{{- fail "autoscaling.minReplicas is above autoscaling.maxReplicas" -}}
{{- end -}}
{{- if and (eq .autoscaling.signal "keda") (not .autoscaling.prometheus) -}}
{{- fail "autoscaling.prometheus is needed with the signal keda, such as http://prometheus.monitoring:9090" -}}
{{- end -}}
{{- end -}}
{{- if and .grpcRoute.enabled (not .grpcRoute.parentRefs) -}}
{{- fail "grpcRoute.parentRefs is needed: the Gateway that the route belongs to" -}}
{{- end -}}
{{- end -}}
{{- end }}
