{{- /* Relations between values, which a JSON schema cannot express. Each message names the value, its limit and a remedy. */ -}}
{{- define "vita-audio.checks" -}}
{{- $v := .Values }}
{{- if and $v.engines.existingClaim $v.engines.build.enabled }}
{{- fail "engines.existingClaim and engines.build.enabled exclude each other: name a claim that holds engines, or build them in the pod" }}
{{- else if not (or $v.engines.existingClaim $v.engines.build.enabled) }}
{{- fail "engines: none given: set engines.existingClaim to a claim that holds engines, or engines.build.enabled and engines.build.checkpointClaim" }}
{{- end }}
{{- if and $v.engines.build.enabled (not $v.engines.build.checkpointClaim) }}
{{- fail "engines.build.checkpointClaim is empty: name the claim that holds the checkpoint" }}
{{- end }}
{{- $needed := include "vita-audio.neededGrace" . | int }}
{{- if lt (include "vita-audio.grace" . | int) $needed }}
{{- fail (printf "drain.graceSeconds: %d is below %d, the sum of drain.settleSeconds, drain.longestStreamSeconds, server.exitTimeoutSeconds and 15: streams would be killed; raise it, or leave it null" (int $v.drain.graceSeconds) $needed) }}
{{- end }}
{{- if and (eq $v.server.profile "gpu") (lt (int $v.gpu.count) 1) }}
{{- fail "gpu.count: 0 with server.profile gpu: at least 1" }}
{{- else if and (eq $v.server.profile "cpu") $v.gpu.count }}
{{- fail (printf "gpu.count: %d with server.profile cpu, which uses no GPU: set 0, or server.profile gpu" (int $v.gpu.count)) }}
{{- end }}
{{- if eq (int $v.ports.grpc) (int $v.ports.metrics) }}
{{- fail (printf "ports.metrics: %d is ports.grpc too: choose another" (int $v.ports.metrics)) }}
{{- end }}
{{- if and (eq (toString $v.rollout.maxSurge) "0") (eq (toString $v.rollout.maxUnavailable) "0") }}
{{- fail "rollout.maxSurge and rollout.maxUnavailable are both 0: no pod could ever be replaced; set one of them to 1" }}
{{- end }}
{{- if and $v.tls.clientCertificates (not $v.tls.secretName) }}
{{- fail "tls.clientCertificates needs tls.secretName: a secret with tls.crt, tls.key and ca.crt" }}
{{- end }}
{{- if ne $v.autoscaling.kind "none" }}
{{- if lt (int $v.autoscaling.maxReplicas) (int $v.autoscaling.minReplicas) }}
{{- fail (printf "autoscaling.maxReplicas: %d is below autoscaling.minReplicas, %d: raise it" (int $v.autoscaling.maxReplicas) (int $v.autoscaling.minReplicas)) }}
{{- end }}
{{- if ge (int $v.autoscaling.freePlaces) (include "vita-audio.places" . | int) }}
{{- fail (printf "autoscaling.freePlaces: %d is not below the %s places of a server (server.slots + server.queue): lower it" (int $v.autoscaling.freePlaces) (include "vita-audio.places" .)) }}
{{- end }}
{{- end }}
{{- if eq $v.autoscaling.kind "keda" }}
{{- if not $v.autoscaling.keda.prometheus }}
{{- fail "autoscaling.keda.prometheus is empty: give the URL of the Prometheus that scrapes the servers" }}
{{- end }}
{{- if not $v.monitoring.serviceMonitor.enabled }}
{{- fail "autoscaling.kind keda needs monitoring.serviceMonitor.enabled: its query selects the labels which that gives" }}
{{- end }}
{{- end }}
{{- if and $v.route.enabled (not $v.route.parentRefs) }}
{{- fail "route.parentRefs is empty: name the Gateway that takes the route" }}
{{- end }}
{{- if $v.gateway.enabled }}
{{- if and (not $v.gateway.keysSecret) (not $v.gateway.openAccess) }}
{{- fail "gateway.keysSecret is empty: name a secret whose entry `keys` is a file of API keys, or set gateway.openAccess where the network is trusted" }}
{{- end }}
{{- if and $v.gateway.keysSecret $v.gateway.openAccess }}
{{- fail "gateway.openAccess excludes gateway.keysSecret: set one of them" }}
{{- end }}
{{- if and $v.gateway.ingress.enabled (not $v.gateway.ingress.host) }}
{{- fail "gateway.ingress.host is empty: give the name that browsers and clients use" }}
{{- end }}
{{- end }}
{{- end }}
